"""The supervisor's table of deployments: loading, replacing and unloading them while the server runs."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from octavo.deployments.control import (
    Applied,
    Describe,
    Description,
    Entry,
    Load,
    Outcome,
    Role,
    Table,
    Unload,
    Wish,
    decode_message,
)
from octavo.deployments.hosted_settings import (
    HOSTED_SETTINGS,
    AnySettings,
    HostedSettings,
    expand,
    is_hosted,
    resolve_hosted,
)
from octavo.deployments.resources import divide
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, require_distinct_names, resolve_deployment
from octavo.engine.config import ModelInfo
from octavo.engine.launch import engine_spec
from octavo.errors import OctavoError
from octavo.hosting.launch import hosting_spec, workers_of
from octavo.settings import Source, from_table, require_known
from octavo.worker.control import WorkerState, WorkerStatus, raw
from octavo.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

T = TypeVar("T")


class Refused(OctavoError):
    """An administrator's wish that cannot be fulfilled; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DeploymentManager:
    """Owns the engines of a server and tells its frontends which of them to offer.

    Args:
        deployments: from the start on; where their models lie is known.
        sources: the command line and the environment, which hold for deployments that come later, too.
        locate: finds a model on this machine, or fetches it. Called in a thread. Raises OctavoError.
        configure: called with every new table, for what frontends that start later are to be told.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        deployments: Sequence[AnySettings],
        *,
        sources: Sequence[Source],
        locate: Callable[[str], Path],
        configure: Callable[[Table], None],
    ) -> None:
        self._supervisor = supervisor
        self._sources = [_without_names(source) for source in sources]
        self._locate = locate
        self._configure = configure
        self._revision = 0
        self._versions: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self._processes: dict[str, list[str]] = {}
        self._applied: dict[str, Applied | None] = {}
        self._news = asyncio.Condition()
        self._changing: str | None = None
        self._retirements: set[asyncio.Task[None]] = set()
        for settings in deployments:
            self._start(settings, Role.OFFERED)

    @property
    def table(self) -> Table:
        """All deployments as they are now."""
        return Table(revision=self._revision, entries=tuple(self._entries.values()))

    def watch(self, frontends: Sequence[str]) -> None:
        """These are the frontends that must have applied a table before it holds."""
        self._applied = dict.fromkeys(frontends)
        self._supervisor.subscribe(self._note_status)

    # --- what frontends say -------------------------------------------------------------------------------------------

    async def handle(self, frontend: str, payload: msgspec.Raw) -> msgspec.Raw:
        """Answer a frontend."""
        message = decode_message(payload)
        if isinstance(message, Applied):
            await self._note_applied(frontend, message)
            return raw(None)
        try:
            return raw(await self._fulfil(message))
        except Refused as error:
            return raw(Outcome(error=str(error), status=error.status))
        except OctavoError as error:
            return raw(Outcome(error=str(error), status=400))

    async def _fulfil(self, wish: Wish) -> Outcome:
        if isinstance(wish, Describe):
            return Outcome(deployments=tuple(map(self._describe, self._entries.values())))
        if self._changing is not None:
            raise Refused(f"{self._changing} is being changed; wait until that is done", 409)
        self._changing = wish.name
        try:
            match wish:
                case Load():
                    return Outcome(deployments=(await self._load(wish),))
                case Unload(name):
                    return Outcome(deployments=(await self._unload(name),))
        finally:
            self._changing = None

    async def _note_applied(self, frontend: str, applied: Applied) -> None:
        async with self._news:
            self._applied[frontend] = applied
            self._news.notify_all()

    def _note_status(self, status: WorkerStatus) -> None:
        """A frontend that has died uses nothing; its heir says what it has made of the table."""
        if status.name in self._applied and status.state is not WorkerState.READY:
            self._applied[status.name] = None
        entry = self._entries.get(status.name)
        if entry is not None and entry.hosted is not None and status.state is WorkerState.READY:
            asyncio.get_running_loop().call_soon(self._start_others, entry)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _load(self, wish: Load) -> Description:
        settings = self._resolve(wish)
        predecessor = self._offered(wish.name)
        offered = [entry.settings for entry in self._entries.values() if entry.role is Role.OFFERED]
        require_distinct_names([*(each for each in offered if each.name != wish.name), settings])
        staying, leaving = self._running(predecessor)
        located: AnySettings
        if isinstance(settings, HostedSettings):
            located = settings.located()
        else:
            path = await _in_thread(lambda: self._locate(wish.model))
            [located] = await _in_thread(lambda: divide([settings.located(path)], staying, leaving))
        return self._describe(await self._offer(located, predecessor))

    async def _offer(self, settings: AnySettings, predecessor: Entry | None) -> Entry:
        """Load a version and offer it, in the place of another one if there is one. Raises Refused: it cannot be."""
        name = settings.name
        entry = self._start(settings, Role.PREPARED)
        try:
            status = await self._supervisor.settled(entry.worker)
            if status.state is not WorkerState.READY:
                raise Refused(f"{name} could not be loaded: {status.failure or 'the server is stopping'}", 500)
            await self._publish()
            if failures := [each.failures[entry.worker] for each in self._answers() if entry.worker in each.failures]:
                raise Refused(f"{name} could not be opened: {failures[0]}", 500)
        except Exception:
            await self._discard(entry.worker)
            raise
        entry = self._assign(entry, Role.OFFERED)
        if predecessor is not None:
            self._put_before(entry, predecessor)
            self._retire(predecessor)
        await self._publish()
        log.info("%s is served, version %d: %s", name, entry.version, settings.model)
        return entry

    async def reload(self, worker: str) -> bool:
        """Load the code of a hosted model again and offer it in the place of what is there; if it cannot be loaded,
        what is there stays. Returns whether that was tried: not while something else is being changed."""
        entry = self._entries.get(worker)
        if entry is None or entry.role is not Role.OFFERED or self._changing is not None:
            return False
        self._changing = entry.settings.name
        try:
            await self._offer(entry.settings, entry)
        except Refused as error:
            log.error("%s; version %d is still served", error, entry.version)
        finally:
            self._changing = None
        return True

    def sources(self) -> dict[str, dict[str, float]]:
        """The files of the code that is to be loaded again when they change, by the workers that have loaded it, each
        with when it had been written."""
        found = {}
        for worker, entry in self._entries.items():
            if entry.role is Role.OFFERED and entry.hosted is not None and entry.hosted.hosting.reload:
                status = self._supervisor.status(worker)
                if status.state is WorkerState.READY:
                    found[worker] = hosted_facts(status)["sources"]
        return found

    def _resolve(self, wish: Load) -> AnySettings:
        written = from_table(wish.settings, "settings.")
        if not is_hosted(wish.model, written):
            require_known(wish.settings, DEPLOYMENT_SETTINGS, "settings.")
            return resolve_deployment(wish.name, wish.model, written, *self._sources)[0]
        require_known(wish.settings, HOSTED_SETTINGS, "settings.")
        [model, *more] = expand(wish.model)
        if more:
            raise Refused(f"{wish.model} has several models: name one of {', '.join([model, *more])}", 400)
        return resolve_hosted(wish.name, model, written, *self._sources)[0]

    async def _unload(self, name: str) -> Description:
        entry = self._offered(name)
        if entry is None:
            raise Refused(f"there is no deployment {name!r}", 404)
        if sum(each.role is Role.OFFERED for each in self._entries.values()) == 1:
            raise Refused(f"{name} is the only deployment; load another one first", 409)
        description = self._describe(self._retire(entry))
        await self._publish()
        log.info("%s is no longer served", name)
        return description

    def _start(self, settings: AnySettings, role: Role) -> Entry:
        version = self._versions[settings.name] = self._versions.get(settings.name, 0) + 1
        # No other process has a name of this form.
        entry = Entry.of(f"{settings.name} v{version}", version, role, settings)
        self._entries[entry.worker] = entry
        self._processes[entry.worker] = [entry.worker]
        if isinstance(settings, HostedSettings):
            self._supervisor.add(hosting_spec(entry.worker, settings.name, settings.hosting))
        else:
            self._supervisor.add(engine_spec(entry.worker, settings.engine))
        return entry

    def _start_others(self, entry: Entry) -> None:
        """Start the other processes of a hosted model: how many there are is known when the first one is loaded."""
        started = self._processes.get(entry.worker)
        if started is None or entry.hosted is None:  # it has been discarded meanwhile
            return
        for worker in workers_of(entry.worker, hosted_facts(self._supervisor.status(entry.worker))["processes"]):
            if worker not in started:
                started.append(worker)
                self._supervisor.add(hosting_spec(worker, entry.settings.name, entry.hosted.hosting))

    def _assign(self, entry: Entry, role: Role) -> Entry:
        entry = self._entries[entry.worker] = msgspec.structs.replace(entry, role=role)
        return entry

    def _put_before(self, entry: Entry, other: Entry) -> None:
        """Give an entry another one's place in the table: the first is the one that requests without a name get."""
        del self._entries[entry.worker]
        entries = list(self._entries.values())
        entries.insert(entries.index(other), entry)
        self._entries = {each.worker: each for each in entries}

    def _retire(self, entry: Entry) -> Entry:
        retirement = asyncio.create_task(self._end_when_unused(entry.worker, self._revision + 1))
        self._retirements.add(retirement)
        retirement.add_done_callback(self._retirements.discard)
        return self._assign(entry, Role.RETIRING)

    async def _end_when_unused(self, worker: str, revision: int) -> None:
        """Wait until no frontend uses a version any more, from a table on, and end its engine."""

        def unused(applied: Applied | None) -> bool:
            return applied is not None and applied.revision >= revision and worker not in applied.workers

        async with self._news:
            await self._news.wait_for(lambda: all(map(unused, self._applied.values())))
        await self._discard(worker)

    async def _discard(self, worker: str) -> None:
        """End the processes of a deployment that nobody uses."""
        del self._entries[worker]
        processes = self._processes.pop(worker)
        self._announce()
        with contextlib.suppress(KeyError):  # the whole server ends
            await asyncio.gather(*map(self._supervisor.remove, processes))

    def _announce(self) -> None:
        """Tell the frontends of the table as it is now."""
        self._revision += 1
        self._configure(self.table)
        self._supervisor.notify(raw(self.table))

    async def _publish(self) -> None:
        """Tell the frontends of the table, and wait until all of them have done what it says."""
        self._announce()
        revision = self._revision
        async with self._news:
            await self._news.wait_for(
                lambda: all(each is not None and each.revision >= revision for each in self._applied.values())
            )

    # --- how things are -----------------------------------------------------------------------------------------------

    def _answers(self) -> Iterator[Applied]:
        return filter(None, self._applied.values())

    def _offered(self, name: str) -> Entry | None:
        found = (each for each in self._entries.values() if each.settings.name == name and each.role is Role.OFFERED)
        return next(found, None)

    def _running(self, predecessor: Entry | None) -> tuple[dict[str, ModelInfo], dict[str, ModelInfo]]:
        """What every engine that is loaded takes: of those that stay, and of those that will end.

        Raises:
            Refused: some are still loading.
        """
        staying: dict[str, ModelInfo] = {}
        leaving: dict[str, ModelInfo] = {}
        for worker, entry in self._entries.items():
            status = self._supervisor.status(worker)
            if status.state is WorkerState.LOADING:
                raise Refused(f"{worker} is still loading; wait until it is ready", 409)
            if entry.language is not None and status.state in (WorkerState.READY, WorkerState.RESTARTING):
                stays = entry.role is Role.OFFERED and entry is not predecessor
                (staying if stays else leaving)[worker] = engine_info(status)
        return staying, leaving

    def _describe(self, entry: Entry) -> Description:
        status = self._supervisor.status(entry.worker)
        loaded = status.state in (WorkerState.READY, WorkerState.RESTARTING)
        state = str(status.state)
        if entry.role is not Role.OFFERED and loaded:
            state = "retiring" if entry.role is Role.RETIRING else "loading"
        return Description(
            name=entry.settings.name,
            names=entry.settings.names,
            model=entry.settings.model,
            version=entry.version,
            state=state,
            progress=status.progress if state == "loading" else None,
            failure=status.failure,
            engine=asdict(engine_info(status)) if loaded and entry.language else None,
            hosting=hosted_facts(status) if loaded and entry.hosted else None,
        )


def _without_names(source: Source) -> Source:
    """The command line may name one model; further ones are named by whoever loads them."""
    return lambda wanted: None if wanted.name == "served_model_name" else source(wanted)


async def _in_thread(work: Callable[[], T]) -> T:
    """Do something that takes long in a thread that does not keep the process from ending, as those of a pool do."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(settling: Callable[[], None]) -> None:
        if not done.done():
            settling()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            settling = partial(done.set_exception, error)
        else:
            settling = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, settling)

    threading.Thread(target=run, name="deployments", daemon=True).start()
    return await done


def engine_info(status: WorkerStatus) -> ModelInfo:
    """What an engine said of itself when it was ready."""
    return msgspec.json.decode(status.payload, type=ModelInfo)


def hosted_facts(status: WorkerStatus) -> dict[str, Any]:
    """What a hosted model's process said of itself when it was ready: `octavo.hosting.info.HostedInfo`, which is not
    imported here, for it takes numpy."""
    return msgspec.json.decode(status.payload, type=dict[str, Any])
