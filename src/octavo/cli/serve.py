"""`octavo serve`: from a model's name to a server that answers."""

import asyncio
import logging
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from octavo.cli.console import console, counting, fetch
from octavo.deployments import Deployment, GenerationDefaults
from octavo.engine.client import EngineClient, EngineState
from octavo.engine.config import EngineConfig
from octavo.engine.local import LocalEngines
from octavo.errors import ConfigError
from octavo.models import read_sizes
from octavo.server.run import bind, bind_unix, serve
from octavo.server.settings import ServerSettings
from octavo.text import load_tokenizer
from octavo.weights.checkpoint import open_checkpoint

log = logging.getLogger("octavo.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen and under which names; `uds` is the path of a Unix socket, instead of host and port."""

    host: str
    port: int
    uds: str | None
    names: tuple[str, ...]
    settings: ServerSettings
    stall_timeout: float


def serve_model(model: str, config: EngineConfig, options: ServeOptions) -> None:
    """Serve until a signal. What can go wrong goes wrong in this order: port, model, settings, weights."""
    started = time.monotonic()
    config.validate()
    _listen(options).close()  # a port in use is found before a long download, but nobody waits at it meanwhile
    path = fetch(model)
    listener = _listen(options)
    try:
        address = _address(listener)
        uvloop.run(_serve(model, replace(config, model=str(path)), options, listener, address, started))
    except asyncio.CancelledError:  # by a signal, before there was a server to drain
        sys.exit(130)
    finally:
        listener.close()
        if options.uds:
            Path(options.uds).unlink(missing_ok=True)


def _listen(options: ServeOptions) -> socket.socket:
    return bind_unix(options.uds) if options.uds else bind(options.host, options.port)


async def _serve(
    model: str, config: EngineConfig, options: ServeOptions, listener: socket.socket, address: str, started: float
) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # until the server has handlers of its own
        loop.add_signal_handler(number, task.cancel)
    async with LocalEngines() as engines:
        engine = engines.start(model, config, stall_timeout=options.stall_timeout)
        checkpoint = await asyncio.to_thread(open_checkpoint, Path(config.model))
        names = options.names or (model,)
        served = Deployment(
            name=names[0],
            aliases=names[1:],
            root=model,
            tokenizer=await asyncio.to_thread(load_tokenizer, checkpoint),
            engine=engine,
            max_model_len=config.max_model_len
            or read_sizes(checkpoint.config, str(checkpoint.config_file)).max_position_embeddings,
            created=int(time.time()),
            defaults=GenerationDefaults.from_config(checkpoint.generation_config),
        )
        server = asyncio.create_task(serve(options.settings, [served], listener))
        loading = asyncio.create_task(_report_loading(engine, served, address, started))
        try:
            await asyncio.wait({server, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await server
        finally:
            for part in (server, loading):
                part.cancel()
            await asyncio.gather(server, loading, return_exceptions=True)


async def _report_loading(engine: EngineClient, served: Deployment, address: str, started: float) -> None:
    """Show how far loading is, then what is served where. Raises EngineFailed when it fails."""
    ready = asyncio.create_task(engine.ready())
    try:
        with counting(f"loading {served.root}") as report:
            while not ready.done():
                await asyncio.wait({ready}, timeout=0.1)
                report(*engine.load_progress)
        info = ready.result()
    finally:
        ready.cancel()
    if engine.state is EngineState.READY:
        tokens = info.num_pages * info.page_size
        log.info(
            "%s is ready on %s after %.1f s: %s backend (%s, %d threads), up to %d tokens a sequence, "
            "%d sequences at once, KV cache for %d tokens in %s",
            served.name,
            address,
            time.monotonic() - started,
            info.backend,
            info.isa or "numpy",
            info.threads,
            info.max_model_len,
            info.max_num_seqs,
            tokens,
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

    numeric = logging.getLevelNamesMapping().get(level.upper())
    if numeric is None:
        raise ConfigError(f"log level {level!r} is unknown; use debug, info, warning or error")
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=numeric, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
