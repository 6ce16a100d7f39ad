"""`octavo serve`: from a model's name to a server that answers."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from octavo.cli.configuration import Configuration
from octavo.cli.console import console, counting, fetch
from octavo.deployments import Deployment, Deployments
from octavo.deployments.loading import located, open_deployment
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.client import EngineState
from octavo.engine.config import ModelInfo
from octavo.engine.local import LocalEngines
from octavo.server.run import bind, bind_unix, serve
from octavo.server.settings import ServerSettings

log = logging.getLogger("octavo.server")


def serve_models(configuration: Configuration) -> None:
    """Serve until a signal. What can go wrong goes wrong in this order: port, models, settings, weights."""
    started = time.monotonic()
    server = configuration.server
    _listen(server).close()  # a port in use is found before a long download, but nobody waits at it meanwhile
    deployments = [located(settings, fetch(settings.model)) for settings in configuration.deployments]
    listener = _listen(server)
    try:
        uvloop.run(_serve(deployments, server, listener, started))
    except asyncio.CancelledError:  # by a signal, before there was a server to drain
        sys.exit(130)
    finally:
        listener.close()
        if server.uds:
            Path(server.uds).unlink(missing_ok=True)


def _listen(server: ServerSettings) -> socket.socket:
    return bind_unix(server.uds) if server.uds else bind(server.host, server.port)


async def _serve(
    deployments: Sequence[DeploymentSettings], settings: ServerSettings, listener: socket.socket, started: float
) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # until the server has handlers of its own
        loop.add_signal_handler(number, task.cancel)
    async with LocalEngines() as engines:
        clients = [engines.start(each.name, each.engine, stall_timeout=each.stall_timeout) for each in deployments]
        served = [
            await asyncio.to_thread(open_deployment, each, client)
            for each, client in zip(deployments, clients, strict=True)
        ]
        server = asyncio.create_task(serve(settings, Deployments(served), listener))
        loading = asyncio.create_task(_report_loading(served, _address(listener), started))
        try:
            await asyncio.wait({server, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await server
        finally:
            for part in (server, loading):
                part.cancel()
            await asyncio.gather(server, loading, return_exceptions=True)


async def _report_loading(deployments: Sequence[Deployment], address: str, started: float) -> None:
    """Show how far loading is, then what is served where. Raises EngineFailed when it fails."""
    waiting = {asyncio.create_task(each.engine.ready()): each for each in deployments}
    try:
        with counting(f"loading {', '.join(each.root for each in deployments)}") as report:
            while pending := [task for task in waiting if not task.done()]:
                await asyncio.wait(pending, timeout=0.1)
                progress = [each.engine.load_progress for each in deployments]
                report(sum(done for done, _ in progress), sum(total for _, total in progress))
                for task in waiting:
                    if task.done():
                        task.result()
    finally:
        for task in waiting:
            task.cancel()
    for task, each in waiting.items():
        if each.engine.state is EngineState.READY:
            _log_ready(each, task.result(), address, started)


def _log_ready(deployment: Deployment, info: ModelInfo, address: str, started: float) -> None:
    log.info(
        "%s is ready on %s after %.1f s: %s backend (%s, %d threads), up to %d tokens a sequence, "
        "%d sequences at once, KV cache for %d tokens in %s",
        deployment.name,
        address,
        time.monotonic() - started,
        info.backend,
        info.isa or "numpy",
        info.threads,
        info.max_model_len,
        info.max_num_seqs,
        info.num_pages * info.page_size,
        info.kv_cache_dtype,
    )


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure_logging(level: str) -> None:
    """Log to standard error, with colours on a terminal."""
    from rich.logging import RichHandler

    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
