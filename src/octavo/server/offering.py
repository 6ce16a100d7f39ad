"""A frontend's copy of the supervisor's table: it opens deployments, offers them, and lets go of those that retire."""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec

from octavo.deployments import AnyDeployment, Deployment, Deployments, HostedDeployment
from octavo.deployments.control import (
    Applied,
    Gather,
    Outcome,
    Role,
    Table,
    Wish,
    decode_gathered,
    decode_outcome,
    decode_table,
)
from octavo.deployments.hosted_settings import AnySettings, HostedSettings
from octavo.deployments.settings import DeploymentSettings
from octavo.deployments.step_models import OfferedModels
from octavo.engine.client import EngineClient
from octavo.errors import OctavoError
from octavo.hosting.caching_client import CachingClient
from octavo.hosting.calls import Calls
from octavo.hosting.client import HostedClient
from octavo.hosting.config import ENSEMBLE
from octavo.hosting.ensemble_client import EnsembleClient
from octavo.hosting.launch import workers_of
from octavo.hosting.model_client import ModelClient
from octavo.hosting.response_cache import ResponseCache
from octavo.hosting.triton.ensembles import ensemble_from
from octavo.server.inference.control import ModelsOwn
from octavo.server.tracing import Tracer
from octavo.worker.control import WorkerState, WorkerStatus, raw
from octavo.worker.link import SupervisorLink

log = logging.getLogger(__name__)


def _open_language_model(settings: DeploymentSettings, engine: EngineClient) -> Deployment:
    """Not on the event loop: what only language models need is imported with the first of them, which takes a while."""
    from octavo.deployments.loading import open_deployment

    return open_deployment(settings, engine)


class Offering:
    """Does what the supervisor's tables say, one after the other, and tells it so.

    Args:
        deployments: what is offered. cache: of answers, if they are kept. tracer: of requests.
    """

    def __init__(
        self, link: SupervisorLink, deployments: Deployments, cache: ResponseCache | None, tracer: Tracer
    ) -> None:
        self._link = link
        self._deployments = deployments
        self._cache = cache
        self._tracer = tracer
        self._revision = -1
        self._opened: dict[str, AnyDeployment] = {}
        self._failures: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._in_order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[asyncio.Future[msgspec.Raw]] = set()
        self._stopping = False

    async def begin(self, table: Table) -> None:
        """Do what the first table says. Raises OctavoError: a deployment cannot be opened."""
        await self._apply(table)
        for entry in table.entries:
            if entry.role is Role.OFFERED and entry.worker in self._failures:
                raise OctavoError(self._failures[entry.worker])

    def on_notice(self, payload: msgspec.Raw) -> None:
        """The table has changed."""
        self._run(self._apply(decode_table(payload)))

    async def fulfil(self, wish: Wish) -> Outcome:
        """Ask the supervisor for what an administrator wants."""
        asked = asyncio.ensure_future(self._link.ask(raw(wish)))
        self._asked.add(asked)
        try:
            return decode_outcome(await asked)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return Outcome(error="the server is shutting down", status=503)
        finally:
            self._asked.discard(asked)

    async def gather(self, what: str) -> list[msgspec.Raw]:
        """What the other frontends say, of those that are there. Raises OctavoError: the server is shutting down."""
        return decode_gathered(await self._link.ask(raw(Gather(what))))

    def stop(self) -> None:
        """Wait for no answer any more."""
        self._stopping = True
        for asked in self._asked:
            asked.cancel()

    async def _apply(self, table: Table) -> None:
        async with self._in_order:
            if table.revision <= self._revision:
                return
            wanted = [entry for entry in table.entries if entry.role is not Role.RETIRING]
            workers = {entry.worker for entry in wanted}
            self._failures = {worker: why for worker, why in self._failures.items() if worker in workers}
            for entry in wanted:
                if entry.worker not in self._opened and entry.worker not in self._failures:
                    await self._open(entry.worker, entry.settings)
            offered = (entry.worker for entry in wanted if entry.role is Role.OFFERED)
            self._deployments.listed, self._deployments.loading = table.listed, table.loading
            self._tracer.apply(table.tracing)
            self._deployments.offer(self._opened[worker] for worker in offered if worker in self._opened)
            for worker in self._opened.keys() - workers - self._leaving:
                self._leaving.add(worker)
                self._run(self._let_go(worker))
            self._revision = table.revision
            await self._tell()

    async def _open(self, worker: str, settings: AnySettings) -> None:
        if isinstance(settings, HostedSettings):
            opens = self._open_composed if settings.hosting.runtime == ENSEMBLE else self._open_hosted
            self._opened[worker] = opens(worker, settings)
            return
        engine = EngineClient(
            stall_timeout=settings.stall_timeout, on_culprit=partial(self._link.culprit_found, worker)
        )
        self._link.watch(worker, partial(self._note_status, engine))
        try:
            self._opened[worker] = await asyncio.to_thread(_open_language_model, settings, engine)
        except OctavoError as error:
            self._failures[worker] = str(error)
        except Exception as error:  # a defect of ours: others wait to hear of it
            log.exception("cannot open %s", settings.name)
            self._failures[worker] = f"{type(error).__name__}; the log says where"

    def _open_composed(self, worker: str, settings: HostedSettings) -> HostedDeployment:
        """Of what other models compute."""
        model = settings.hosting.repository
        assert model is not None
        client = EnsembleClient(
            ensemble_from(model, settings.name), OfferedModels(self._deployments), settings.hosting.version
        )
        return HostedDeployment.of(settings, self._with_cache(worker, client))

    def _open_hosted(self, worker: str, settings: HostedSettings) -> HostedDeployment:
        calls = Calls(OfferedModels(self._deployments), ModelsOwn(self.fulfil))
        client = HostedClient(on_culprit=self._link.culprit_found, calls=calls, version=settings.hosting.version)

        def watch(name: str) -> None:
            client.add(name)
            self._link.watch(name, note)

        def note(status: WorkerStatus) -> None:
            client.update(status)
            if status.state is WorkerState.STOPPED:
                self._link.unwatch(status.name)
            if client.info is not None:
                names = workers_of(worker, client.info.process_numbers)
                client.keep(names)
                for name in names:
                    if name not in client.workers:
                        watch(name)

        watch(worker)
        return HostedDeployment.of(settings, self._with_cache(worker, client))

    def _with_cache(self, worker: str, client: ModelClient) -> ModelClient:
        return client if self._cache is None else CachingClient(client, self._cache, worker)

    def _note_status(self, engine: EngineClient, status: WorkerStatus) -> None:
        engine.update(status)
        if status.state is WorkerState.STOPPED:
            self._link.unwatch(status.name)

    async def _let_go(self, worker: str) -> None:
        """Wait until the last request has ended that a deployment took."""
        await self._deployments.unused(self._opened[worker])
        self._opened.pop(worker).close()
        self._leaving.remove(worker)
        await self._tell()

    async def _tell(self) -> None:
        applied = Applied(revision=self._revision, workers=tuple(self._opened), failures=self._failures)
        await self._link.ask(raw(applied))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
