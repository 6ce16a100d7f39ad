"""Running the application: the socket, the signals, and an orderly end."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from octavo.deployments import Deployments
from octavo.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.connections import ConnectionLimits, Connections
from octavo.server.context import Server
from octavo.server.protocol import HttpProtocol
from octavo.server.settings import ServerSettings

log = logging.getLogger("octavo.server")

BACKLOG = 2048

MAX_FILES = 65536

RESERVED_FILES = 64
"""File descriptors that are never left to clients."""

TICKS_PER_SECOND = 10
"""Of uvicorn's main loop."""

CLOSING_SECONDS = 5
"""For clients to read the last bytes of what ended."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port before anything else is done, so that one in use is found out at once. Port 0 is any free one.

    Raises:
        ConfigError: the address is in use, not ours, or not allowed.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server may start while connections of the one before it linger.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listen(listener, (host, port), f"{host} port {port}", "choose another with --host and --port")


def bind_unix(path: str) -> socket.socket:
    """Listen on a Unix socket. The file that a killed server left behind is replaced.

    Raises:
        ConfigError: another server listens there, or the path cannot be used.
    """
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:  # nobody listens any more
                Path(path).unlink()
    return _listen(socket.socket(socket.AF_UNIX), path, path, "choose another path with --uds")


def _listen(listener: socket.socket, address: tuple[str, int] | str, where: str, remedy: str) -> socket.socket:
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {where}: {reason.rstrip('.')}; {remedy}") from error
    return listener


def raise_file_limit() -> None:
    """Every connection is an open file, and the usual limit of 1024 is one that a process may raise itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limits(settings: ServerSettings) -> ConnectionLimits:
    """What the settings leave to clients. Some descriptors are kept back: for files, and for the engines' channels,
    without which an engine that dies while clients use up all others could not be replaced."""
    most = settings.max_connections
    if most is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        in_use = len(os.listdir("/dev/fd"))
        reserve = min(max(RESERVED_FILES, descriptors // 8), BACKLOG)
        most = max(descriptors - in_use - reserve, 1)
    return ConnectionLimits(
        max_connections=most,
        head_timeout=settings.request_head_timeout,
        body_timeout=settings.request_body_timeout,
    )


class _Uvicorn(uvicorn.Server):
    """Uvicorn with limits on connections, and without its signal handlers: it would close the port first, and drain
    afterwards."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self.server_state: Connections = Connections(limits)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            self.server_state.expire(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: ServerSettings, deployments: Deployments, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    The first signal turns readiness to 503 and refuses new work, while the port stays open and requests in flight go
    on, `settings.shutdown_timeout` long at most; what is left then ends with an error. A second signal skips the wait.
    The engines belong to the caller: started before or meanwhile, stopped afterwards.

    Args:
        listener: from `bind` or `bind_unix`; closed at the end.
    """
    raise_file_limit()
    app = create_app(settings, deployments)
    server: Server = app.state.server
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    runner = _Uvicorn(config, connection_limits(settings))
    drain: asyncio.Task[None] | None = None

    async def stop_when_drained() -> None:
        await server.in_flight.drain(settings.shutdown_timeout)
        runner.should_exit = True

    def on_signal() -> None:
        nonlocal drain
        if drain is None:
            log.info(
                "stopping: requests in flight have %g seconds; signal again to stop now", settings.shutdown_timeout
            )
            drain = asyncio.create_task(stop_when_drained())
            return
        log.info("stopping now")
        server.in_flight.cancel()
        runner.should_exit = runner.force_exit = True

    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in handled:
        loop.add_signal_handler(number, on_signal)
    try:
        await runner.serve(sockets=[listener])
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        if drain is not None:
            drain.cancel()
        listener.close()
