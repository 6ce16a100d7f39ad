"""`octavo serve`: the supervisor of a server's processes, from models' names to an orderly end.

It stays light: frontends speak HTTP and engines compute, each in a process of its own.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.cli.configuration import Configuration
from octavo.deployments.control import Table
from octavo.deployments.entries import Entries, hosted_facts
from octavo.deployments.frontends import Frontends
from octavo.deployments.hosted_settings import AnySettings, HostedSettings
from octavo.deployments.manager import DeploymentManager, engine_info
from octavo.deployments.reloading import reload_when_changed
from octavo.deployments.resources import divide
from octavo.deployments.server_log import ServerLog
from octavo.deployments.settings import DeploymentSettings
from octavo.deployments.tracing import ServerTracing
from octavo.engine.config import ModelInfo
from octavo.errors import ConfigError, OctavoError
from octavo.hosting.rate_limit_server import RateLimitServer
from octavo.hosting.response_cache import CacheMemory, cache_file
from octavo.server.launch import FrontendConfiguration, frontend_spec
from octavo.server.listener import address_of, bind, bind_grpc, bind_metrics, bind_unix, grpc_address_of
from octavo.server.settings import ServerSettings
from octavo.worker.control import Stop, WorkerState, WorkerStatus, raw
from octavo.worker.folder import PrivateFolder
from octavo.worker.launcher import LocalLauncher
from octavo.worker.supervisor import Supervisor

if TYPE_CHECKING:  # with protobuf and numpy, which who serves no repository need not load
    from octavo.deployments.repository import Repository

log = logging.getLogger("octavo.server")

INTERRUPTED = 130
"""The exit status after a signal that came before the server was ready."""

HURRY_SECONDS = 2.0
"""For a frontend to tell its clients that the server is stopping now."""


class ServerFailed(OctavoError):
    """A process that the server cannot do without could not be started, or not be kept alive."""


def _fetch(model: str) -> Path:
    """Find a language model on this machine, or fetch it."""
    from octavo.cli.console import fetch

    return fetch(model)


def serve_models(configuration: Configuration) -> None:
    """Serve until a signal. What can go wrong goes wrong in this order: port, models, settings, weights."""
    started = time.monotonic()
    settings = configuration.server
    hosted = any(isinstance(each, HostedSettings) for each in configuration.deployments)
    repository = bool(configuration.repository.places)
    # A port in use is found before a long download, but nobody waits at it meanwhile.
    _listen(settings, hosted or repository, repository=False).close()
    deployments = _located(configuration.deployments)
    listeners = _listen(settings, hosted or repository, repository)
    try:
        status = asyncio.run(ServerProcesses(deployments, configuration, listeners).run(started))
    finally:
        listeners.close()
        if settings.uds:
            Path(settings.uds).unlink(missing_ok=True)
    sys.exit(status)


def _located(deployments: Sequence[AnySettings]) -> list[AnySettings]:
    """The deployments with where their models lie, and with what of the machine the language models have."""
    located = [each.located() if isinstance(each, HostedSettings) else None for each in deployments]
    language = [each for each in deployments if isinstance(each, DeploymentSettings)]
    divided = iter(divide([each.located(_fetch(each.model)) for each in language]) if language else [])
    return [next(divided) if each is None else each for each in located]


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of a server. Attributes: grpc, metrics: for these alone, if it has such."""

    http: socket.socket
    grpc: socket.socket | None = None
    metrics: socket.socket | None = None

    def close(self) -> None:
        """Let go of all."""
        for each in (self.http, self.grpc, self.metrics):
            if each is not None:
                each.close()


def _listen(settings: ServerSettings, hosted: bool, repository: bool) -> Listeners:
    uds, host, port = settings.uds, settings.host, settings.port
    listeners = Listeners(bind_unix(uds) if uds else bind(host, port, shared=settings.reuse_http_port))
    try:
        listeners = replace(listeners, grpc=bind_grpc(settings, listen=hosted))
        return replace(listeners, metrics=bind_metrics(settings, repository=repository))
    except OctavoError:
        listeners.close()
        raise


def _new_cache(settings: ServerSettings) -> CacheMemory | None:
    """Memory for the answers that are kept, if they are. Raises OSError."""
    size = settings.cache_bytes
    return CacheMemory(cache_file(size), size, shared=settings.api_workers > 1) if size else None


class ServerProcesses:
    """The processes of one server, from their start to their end."""

    def __init__(self, deployments: Sequence[AnySettings], configuration: Configuration, listeners: Listeners) -> None:
        self._deployments = deployments
        self._configuration = configuration
        self._settings = configuration.server
        self._folder: PrivateFolder | None = None
        if self._settings.api_workers > 1 and self._settings.store is None:
            # A client's next request may come to another frontend: they share a file that ends with the server.
            self._settings = replace(self._settings, store=self._private_path("responses.db"))
        self._listeners = listeners
        self._cache = _new_cache(self._settings)
        self._frontends = [f"frontend {number}" for number in range(1, self._settings.api_workers + 1)]
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loaded = False
        self._repository: Repository | None = None
        self._tracing: ServerTracing | None = None

    def _private_path(self, name: str) -> str:
        """The path of something that ends with the server."""
        if self._folder is None:
            self._folder = PrivateFolder()
        return str(self._folder.path / name)

    async def run(self, started: float) -> int:
        """Start everything, wait for a signal, let what is in flight end. Returns the exit status.

        Args:
            started: `time.monotonic()` when the command began.

        Raises:
            ServerFailed: a model cannot be loaded, or a frontend cannot be kept alive.
        """
        self._supervisor = Supervisor(LocalLauncher(), handler=self._handle, logging=self._settings.logging)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        rate_limiter = await self._start_rate_limiter()
        try:
            self._start("" if rate_limiter is None else rate_limiter.path)
            ready = await _unless(self._stop, self._until_ready(started))
            if ready:
                following = [asyncio.create_task(reload_when_changed(self._manager))]
                if self._repository is not None and self._configuration.repository.model_control_mode == "poll":
                    following.append(asyncio.create_task(self._repository.poll()))
                await _unless(self._stop, self._watch_frontends())
                for each in following:
                    each.cancel()
            await self._drain()
        finally:
            await self._supervisor.stop()
            if self._tracing is not None:
                self._tracing.close()
            if rate_limiter is not None:
                rate_limiter.close()
            if self._folder is not None:
                self._folder.close()
        return 0 if ready else INTERRUPTED

    async def _start_rate_limiter(self) -> RateLimitServer | None:
        settings = self._configuration.repository
        if not settings.limits:
            return None
        rate_limiter = RateLimitServer(self._private_path("rate-limiter"), settings.resources)
        await rate_limiter.start()
        return rate_limiter

    def _start(self, rate_limiter: str) -> None:
        """Start all processes at once: frontends import what they need while engines load."""
        self._entries = Entries(self._supervisor, self._configure, rate_limiter)
        self._tracing = ServerTracing(self._entries, self._settings.tracing)
        settings = self._configuration.repository
        if settings.model_repository:
            from octavo.deployments.repository import Repository

            self._repository = Repository(self._entries, settings, self._configuration.hosting)
        self._manager = DeploymentManager(
            self._entries,
            self._deployments,
            sources=self._configuration.sources,
            locate=_fetch,
            frontends=Frontends(self._supervisor, self._frontends),
            server_log=ServerLog(self._supervisor, self._settings.logging, self._frontends),
            tracing=self._tracing,
            repository=self._repository,
        )
        for name in self._frontends:
            self._supervisor.add(frontend_spec(name, self._frontend_configuration(self._entries.table)))
        self._entries.watch(self._frontends)

    async def _handle(self, frontend: str, payload: msgspec.Raw) -> msgspec.Raw:
        return await self._manager.handle(frontend, payload)

    def _configure(self, table: Table) -> None:
        """What heirs of the frontends are told."""
        for name in self._frontends:
            self._supervisor.reconfigure(name, bytes(raw(self._frontend_configuration(table))))

    def _frontend_configuration(self, table: Table) -> FrontendConfiguration:
        http, grpc, metrics = self._listeners.http, self._listeners.grpc, self._listeners.metrics
        return FrontendConfiguration(
            listener=http.fileno(),
            grpc_listener=None if grpc is None else grpc.fileno(),
            metrics_listener=None if metrics is None else metrics.fileno(),
            cache=self._cache,
            settings=self._settings,
            table=table,
        )

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            if self._loaded:
                seconds = self._settings.shutdown_timeout
                log.info("stopping: any requests in flight have %g seconds; signal again to stop now", seconds)
            else:
                log.info("stopping")
            self._stop.set()
        elif not self._hurry.is_set():
            log.info("stopping now")
            self._hurry.set()

    async def _until_ready(self, started: float) -> None:
        """Show how far loading is, then what is served where."""
        from octavo.cli.console import counting  # which takes a while, and the processes are loading by now

        progress: dict[str, tuple[int, int]] = {}
        engines = {entry.worker: entry.settings.name for entry in self._entries.table.entries}
        models = [*(each.model for each in self._deployments), *self._configuration.repository.model_repository]
        with counting(f"loading {', '.join(models)}") as report:

            def note(status: WorkerStatus) -> None:
                if status.name in engines:
                    progress[status.name] = status.progress
                    report(sum(done for done, _ in progress.values()), sum(total for _, total in progress.values()))

            unsubscribe = self._supervisor.subscribe(note)
            repository = asyncio.create_task(self._load_repository())
            try:
                names = (*engines, *self._frontends)
                for settled in asyncio.as_completed([self._supervisor.settled(name) for name in names]):
                    status = await settled
                    if status.state is WorkerState.FAILED:
                        raise ServerFailed(str(status.failure))
                await repository
                self._require_models()
            finally:
                repository.cancel()
                unsubscribe()
        # Whoever reads that a model is ready may ask for it at once: every frontend knows it.
        await asyncio.gather(*map(self._supervisor.synced, self._frontends))
        self._loaded = True
        http, grpc = address_of(self._listeners.http), self._listeners.grpc
        both = http if grpc is None else f"{http} and {grpc_address_of(grpc)} (gRPC)"
        seconds = time.monotonic() - started
        for entry in self._entries.table.entries:
            status, name = self._entries.status(entry), entry.settings.name
            if entry.hosted is None:
                log.info("%s is ready on %s after %.1f s", name, http, seconds)
                _log_engine(name, engine_info(status))
            elif entry.hosted.hosting.repository is None:
                log.info("%s is ready on %s after %.1f s", name, both, seconds)
                _log_hosted(hosted_facts(status))
        if self._listeners.metrics is not None:
            log.info("metrics are at %s/metrics", address_of(self._listeners.metrics))
        if self._repository is not None:
            ready, total = self._repository.counts
            log.info("%d of %d models of the repository are ready on %s after %.1f s", ready, total, both, seconds)

    def _require_models(self) -> None:
        """See that ensembles have the models that they name. Raises ServerFailed: one has not, and nothing may come."""
        for entry in self._entries.table.entries:
            try:
                self._entries.require_models(entry)
            except ConfigError as error:
                if self._repository is None:
                    raise ServerFailed(str(error)) from None
                log.warning("%s; it may still be loaded", error)

    async def _load_repository(self) -> None:
        """Raises ServerFailed: a model cannot be loaded, and that is to end the server."""
        if self._repository is None:
            return
        failures = await self._repository.start()
        if failures and self._configuration.repository.exit_on_error:
            raise ServerFailed(f"failed to load all models: {'; '.join(failures)}")

    async def _watch_frontends(self) -> None:
        """Wait until a frontend cannot be kept alive. An engine that cannot is told to clients by the frontends."""
        for ended in asyncio.as_completed([self._supervisor.ended(name) for name in self._frontends]):
            raise ServerFailed(str((await ended).failure))

    async def _drain(self) -> None:
        """Have the frontends end what is in flight. Those that are not ready have nothing."""
        serving = [name for name in self._frontends if self._supervisor.status(name).state is WorkerState.READY]
        if not serving:
            return
        seconds = self._settings.shutdown_timeout
        ends = [asyncio.create_task(self._supervisor.finish(name, seconds)) for name in serving]
        if not await _unless(self._hurry, asyncio.wait(ends)):
            for name in serving:
                self._supervisor.send(name, Stop(0.0))
            await asyncio.wait(ends, timeout=HURRY_SECONDS)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do some work to its end, or until an event comes first. Returns whether it got to its end."""
    task, interruption = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, interruption}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for each in (task, interruption):
            each.cancel()
        await asyncio.gather(task, interruption, return_exceptions=True)


def _log_engine(name: str, info: ModelInfo) -> None:
    log.info(
        "%s: %s backend (%s, %d thread%s), up to %d tokens a sequence, %d sequence%s at once",
        name,
        info.backend,
        info.isa or "numpy",
        info.threads,
        "" if info.threads == 1 else "s",
        info.max_model_len,
        info.max_num_seqs,
        "" if info.max_num_seqs == 1 else "s",
    )
    log.info("%s: KV cache for %d tokens in %s", name, info.num_pages * info.page_size, info.kv_cache_dtype)


def _log_hosted(facts: Mapping[str, Any]) -> None:
    batching = facts["batching"]
    log.info(
        "%s: %s, %d instance%s, %s; inputs: %s; outputs: %s",
        facts["name"],
        facts["runtime"],
        facts["instances"],
        "" if facts["instances"] == 1 else "s",
        f"batches of up to {batching['max_batch_size']}" if batching else "each request alone",
        _listed(facts["inputs"]),
        _listed(facts["outputs"]),
    )


def _listed(tensors: Sequence[Mapping[str, Any]]) -> str:
    """Tensors with their types and dimensions, those of any size as -1."""
    return ", ".join(
        f"{each['name']} {each['datatype'] or 'of any type'} {'of any shape' if each['dims'] is None else each['dims']}"
        for each in tensors
    )
