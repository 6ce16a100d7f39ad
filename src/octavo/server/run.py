"""Running the application, and an orderly end."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from octavo.deployments import Deployments
from octavo.server.acceptor import Acceptor
from octavo.server.app import create_app
from octavo.server.connections import ConnectionLimits, Connections
from octavo.server.context import Server
from octavo.server.grpc_port import GrpcPort
from octavo.server.hosts import local_hosts
from octavo.server.inference.direct import DirectWay
from octavo.server.listener import BACKLOG
from octavo.server.metrics_port import MetricsPort
from octavo.server.protocol import HttpProtocol
from octavo.server.settings import ServerSettings
from octavo.worker.files import raise_file_limit

log = logging.getLogger("octavo.server")

RESERVED_FILES = 64
"""File descriptors that are never left to clients."""

TICKS_PER_SECOND = 10
"""Of uvicorn's main loop."""

METRICS_CONNECTIONS = 64
"""On the port for metrics alone."""

CLOSING_SECONDS = 5
"""For clients to read the last bytes of what ended."""


def settings_on(listener: socket.socket, settings: ServerSettings) -> ServerSettings:
    """The settings for a socket: unless they say which hosts are allowed, its address does."""
    return settings if settings.allowed_hosts else replace(settings, allowed_hosts=local_hosts(listener))


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

    def __init__(self, config: uvicorn.Config, connections: Connections, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self.server_state: Connections = connections
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        await self.lifespan.startup()
        room = self.server_state.room
        self.servers = [Acceptor(listener, self._new_protocol, room) for listener in sockets]  # type: ignore[misc]
        self.started = True
        self._on_started()

    def _new_protocol(self) -> asyncio.Protocol:
        return HttpProtocol(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            self.server_state.expire(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """The application on a socket.

    Args:
        app: made by `create_app`. The engines belong to the caller: started before or meanwhile, stopped afterwards.
        listener: from `octavo.server.listener`; closed at the end. grpc_listener: for hosted models.
        metrics_listener: for metrics alone.
        on_started: called when requests are answered from now on.
    """

    def __init__(
        self,
        settings: ServerSettings,
        app: FastAPI,
        listener: socket.socket,
        grpc_listener: socket.socket | None = None,
        on_started: Callable[[], None] = lambda: None,
        *,
        metrics_listener: socket.socket | None = None,
    ) -> None:
        raise_file_limit()
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
        self._app = app
        self._server: Server = app.state.server
        limits = connection_limits(settings)
        self._runner = _Uvicorn(config, Connections(limits, DirectWay(self._server)), on_started)
        self._listener = listener
        self._grpc = None if grpc_listener is None else GrpcPort(self._server, grpc_listener, limits.max_connections)
        self._metrics_listener = metrics_listener
        self._metrics_limits = replace(limits, max_connections=METRICS_CONNECTIONS)
        self._drain: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until `stop`."""
        try:
            if self._grpc is not None:
                self._grpc.open_when_needed()
            async with self._metrics():
                await self._runner.serve(sockets=[self._listener])
        finally:
            if self._grpc is not None:
                await self._grpc.close()
            if self._drain is not None:
                self._drain.cancel()
            self._listener.close()
            await self._server.tracer.close()
            self._server.close()

    @contextlib.asynccontextmanager
    async def _metrics(self) -> AsyncIterator[None]:
        """The port for metrics, open for so long, if there is one."""
        if self._metrics_listener is None:
            yield
            return
        port = MetricsPort(self._app, Connections(self._metrics_limits, None), self._metrics_listener)
        try:
            yield
        finally:
            await port.close()

    def stop(self, drain_seconds: float) -> None:
        """End in good order. A second call skips the wait.

        Readiness turns to 503 and new work is refused, while the port stays open and requests in flight go on, so long
        at most; what is left then ends with an error.
        """
        if self._drain is None:
            self._drain = asyncio.create_task(self._stop_when_drained(drain_seconds))
            return
        self._server.in_flight.cancel()
        self._runner.should_exit = self._runner.force_exit = True

    async def _stop_when_drained(self, drain_seconds: float) -> None:
        if self._grpc is not None:
            self._grpc.drain()
        await self._server.in_flight.drain(drain_seconds)
        self._runner.should_exit = True


async def serve(
    settings: ServerSettings,
    deployments: Deployments,
    listener: socket.socket,
    grpc_listener: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal skips the wait for requests in flight. See `HttpServer`."""
    server = HttpServer(settings, create_app(settings_on(listener, settings), deployments), listener, grpc_listener)
    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in handled:
        loop.add_signal_handler(number, server.stop, settings.shutdown_timeout)
    try:
        await server.run()
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
