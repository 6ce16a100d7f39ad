"""The supervisor's table of deployments, the processes behind them, and what frontends have made of it."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from octavo.deployments.control import Applied, Entry, Listed, Role, Table
from octavo.deployments.hosted_settings import AnySettings, HostedSettings
from octavo.deployments.trace_settings import Tracing
from octavo.engine.launch import engine_spec
from octavo.errors import ConfigError, OctavoError
from octavo.hosting.config import HostingConfig
from octavo.hosting.launch import hosting_spec, spec_of, worker_of, workers_of
from octavo.hosting.start import HostingStart
from octavo.worker.control import Notice, WorkerState, WorkerStatus, raw
from octavo.worker.launcher import WorkerSpec
from octavo.worker.supervisor import Supervisor

LISTED = 10
"""Models that an error lists at most."""


class Refused(OctavoError):
    """A wish that cannot be fulfilled; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Entries:
    """Starts deployments, has them offered and retired, and ends those that nobody uses.

    Args:
        configure: called with every new table, for what frontends that start later are to be told.
        rate_limiter: where that listens which says when hosted models may compute; empty if nothing does.

    Attributes:
        listed: the models of repositories that are not offered. loading, tracing: see `Table`.
    """

    def __init__(self, supervisor: Supervisor, configure: Callable[[Table], None], rate_limiter: str = "") -> None:
        self.listed: tuple[Listed, ...] = ()
        self.loading = False
        self.tracing = Tracing()
        self._rate_limiter = rate_limiter
        self._supervisor = supervisor
        self._configure = configure
        self._revision = 0
        self._numbers: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self._processes: dict[str, list[str]] = {}
        self._applied: dict[str, Applied | None] = {}
        self._news = asyncio.Condition()
        self._retirements: set[asyncio.Task[None]] = set()

    @property
    def table(self) -> Table:
        """All deployments as they are now."""
        entries = tuple(self._entries.values())
        return Table(
            revision=self._revision, entries=entries, listed=self.listed, loading=self.loading, tracing=self.tracing
        )

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, worker: str) -> Entry | None:
        """The entry that a worker stands for, as it is now."""
        return self._entries.get(worker)

    def status(self, entry: Entry) -> WorkerStatus:
        """Where its first process stands. What has none is ready."""
        if entry.composed:
            return WorkerStatus(name=entry.worker, state=WorkerState.READY)
        return self._supervisor.status(entry.worker)

    # --- what frontends say -------------------------------------------------------------------------------------------

    def watch(self, frontends: Sequence[str]) -> None:
        """These are the frontends that must have applied a table before it holds."""
        self._applied = dict.fromkeys(frontends)
        self._supervisor.subscribe(self._note_status)

    async def note_applied(self, frontend: str, applied: Applied) -> None:
        """A frontend has done what a table says."""
        if self._applied.get(frontend) is None and applied.revision < self._revision:
            # Its process was being started when this table was sent, and it was told of an older one.
            self._supervisor.send(frontend, Notice(raw(self.table)))
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

    def require_models(self, entry: Entry) -> None:
        """See that the models are offered that an ensemble names, which is loaded. Raises ConfigError: one is not."""
        status = self.status(entry)
        if entry.hosted is not None and not entry.composed and status.state is WorkerState.READY:
            offered = [each for each in self._entries.values() if each.role is Role.OFFERED or each is entry]
            names = {name for each in offered for name in each.settings.names}
            require_models(entry.settings.name, hosted_facts(status).get("asks") or (), names)

    # --- changes ------------------------------------------------------------------------------------------------------

    def start(self, settings: AnySettings, role: Role) -> Entry:
        """Start what computes a deployment. Frontends hear of it with the next table."""
        version = self._numbers[settings.name] = self._numbers.get(settings.name, 0) + 1
        # No other process has a name of this form.
        entry = Entry.of(f"{settings.name} v{version}", version, role, settings)
        self._entries[entry.worker] = entry
        self._processes[entry.worker] = []
        if not entry.composed:
            self._processes[entry.worker].append(entry.worker)
            if isinstance(settings, HostedSettings):
                self._supervisor.add(self._hosting_spec(entry.worker, settings))
            else:
                self._supervisor.add(engine_spec(entry.worker, settings.engine))
        return entry

    async def loaded(self, entry: Entry) -> WorkerStatus:
        """Wait until a deployment that was started is loaded. Raises Refused: it never will be."""
        status = self.status(entry)
        if not entry.composed:
            status = await self._supervisor.settled(entry.worker)
        if status.state is not WorkerState.READY:
            raise Refused(status.failure or "the server is stopping", 500)
        return status

    async def offer(self, entries: Sequence[Entry], predecessors: Sequence[Entry] = ()) -> None:
        """Offer what is loaded, and in its place nothing of some others any more.

        Raises:
            Refused: a frontend cannot open one of them; all is as it was.
        """
        # Opened by all frontends first, so that there is always one that takes requests, or if that may fail.
        if predecessors or any(entry.language for entry in entries):
            await self.publish()
            self._require_opened(entries)
        for entry in entries:
            offered = self._assign(entry, Role.OFFERED)
            if predecessors:
                self._put_before(offered, predecessors[0])
        for predecessor in predecessors:
            self.retire(predecessor)
        await self.publish()

    def _require_opened(self, entries: Sequence[Entry]) -> None:
        for answer in filter(None, self._applied.values()):
            for entry in entries:
                if entry.worker in answer.failures:
                    raise Refused(f"{entry.settings.name} could not be opened: {answer.failures[entry.worker]}", 500)

    def retire(self, entry: Entry) -> Entry:
        """Offer a deployment no longer, from the next table on; it ends when its last request has ended."""
        self._follow(self._end_when_unused(entry.worker, self._revision + 1))
        return self._assign(entry, Role.RETIRING)

    def _follow(self, retirement: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(retirement)
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)

    async def discard(self, worker: str) -> None:
        """End the processes of a deployment that nobody uses."""
        del self._entries[worker]
        processes = self._processes.pop(worker)
        self.announce()
        with contextlib.suppress(KeyError):  # the whole server ends
            await asyncio.gather(*map(self._supervisor.remove, processes))

    async def publish(self) -> None:
        """Tell the frontends, and wait until all that are there have done what the table says."""
        self.announce()
        revision = self._revision
        async with self._news:
            await self._news.wait_for(
                lambda: all(each is not None and each.revision >= revision for each in self._applied.values())
            )

    def _start_others(self, entry: Entry) -> None:
        """Start the other processes of a hosted model: how many there are is known when the first one is loaded."""
        started = self._processes.get(entry.worker)
        if started is None or entry.hosted is None:  # it has been discarded meanwhile
            return
        facts = hosted_facts(self._supervisor.status(entry.worker))
        if facts["numbers"]:  # it has got other instances, which were started one by one
            return
        for number in process_numbers(facts):
            worker = worker_of(entry.worker, number)
            if worker not in started:
                started.append(worker)
                self._supervisor.add(self._hosting_spec(worker, entry.hosted, number))

    def _hosting_spec(self, worker: str, settings: HostedSettings, number: int = 1) -> WorkerSpec:
        return hosting_spec(worker, settings.name, settings.hosting, number, self._rate_limiter)

    # --- other instances ----------------------------------------------------------------------------------------------

    async def resize(self, entry: Entry, hosting: HostingConfig, processes: int) -> None:
        """Have a hosted model, which is loaded, go on with other instances. Those that it has no more end when what
        they have begun has ended.

        Args:
            hosting: its settings, which differ from what they were in instances alone. processes: that it has then.

        Raises:
            Refused: one of them cannot be started, and all is as it was.
        """
        name, facts = entry.settings.name, hosted_facts(self.status(entry))
        started, before = self._processes[entry.worker], process_numbers(facts)
        free = (number for number in itertools.count(1) if worker_of(entry.worker, number) not in started)
        staying = before[:processes]
        more = tuple(itertools.islice(free, processes - len(staying)))
        now = (*staying, *more)
        earlier = dict.fromkeys((before, *map(tuple, facts["earlier"])))
        common = HostingStart(
            name=name,
            config=hosting,
            rate_limiter=self._rate_limiter,
            numbers=now,
            earlier=tuple(each for each in earlier if each != now),
        )
        await self._start_more(entry, [msgspec.structs.replace(common, number=number) for number in more])
        settings = HostedSettings(name=name, model=hosting.model, hosting=hosting)
        self._entries[entry.worker] = msgspec.structs.replace(self._entries[entry.worker], hosted=settings)
        await asyncio.gather(
            *(
                self._supervisor.configure(
                    worker_of(entry.worker, number), bytes(raw(msgspec.structs.replace(common, number=number)))
                )
                for number in staying
            )
        )
        await self.publish()
        for worker in workers_of(entry.worker, before[processes:]):
            self._follow(self._let_go(entry.worker, worker))

    async def _start_more(self, entry: Entry, starts: Sequence[HostingStart]) -> None:
        """Start further processes of a model. Raises Refused: one of them cannot be, and so none is."""
        started = self._processes[entry.worker]
        workers = workers_of(entry.worker, [each.number for each in starts])
        for worker, start in zip(workers, starts, strict=True):
            started.append(worker)
            self._supervisor.add(spec_of(worker, start))
        statuses = await asyncio.gather(*map(self._supervisor.settled, workers))
        failures = [each.failure for each in statuses if each.state is not WorkerState.READY]
        if failures:
            await asyncio.gather(*map(self._supervisor.remove, workers))
            for worker in workers:
                started.remove(worker)
            name, version = entry.settings.name, starts[0].config.version
            why = f"version {version} is at READY state: {failures[0] or 'the server is stopping'};"
            raise Refused(f"load failed for model '{name}': {why}", 400)

    async def _let_go(self, first: str, worker: str) -> None:
        """End a process that is asked for nothing more."""
        with contextlib.suppress(KeyError):  # the whole model ends
            await self._supervisor.retire(worker)
        if worker in self._processes.get(first, ()):
            self._processes[first].remove(worker)

    # --- the table ----------------------------------------------------------------------------------------------------

    def _assign(self, entry: Entry, role: Role) -> Entry:
        entry = self._entries[entry.worker] = msgspec.structs.replace(entry, role=role)
        return entry

    def _put_before(self, entry: Entry, other: Entry) -> None:
        """Give an entry another one's place in the table: the first is the one that requests without a name get."""
        del self._entries[entry.worker]
        workers = list(self._entries)
        entries = list(self._entries.values())
        entries.insert(workers.index(other.worker), entry)
        self._entries = {each.worker: each for each in entries}

    async def _end_when_unused(self, worker: str, revision: int) -> None:
        """Wait until no frontend uses a version any more, from a table on, and end its processes."""

        def unused(applied: Applied | None) -> bool:
            return applied is not None and applied.revision >= revision and worker not in applied.workers

        async with self._news:
            await self._news.wait_for(lambda: all(map(unused, self._applied.values())))
        await self.discard(worker)

    def announce(self) -> None:
        """Tell the frontends of the table as it is now."""
        self._revision += 1
        self._configure(self.table)
        self._supervisor.notify(raw(self.table))


def require_models(ensemble: str, asks: Iterable[tuple[str, int]], served: Collection[str]) -> None:
    """See that the models are served that an ensemble names.

    Args:
        asks: as `octavo.hosting.info.HostedInfo` has them. served: the names that requests may use.

    Raises:
        ConfigError: one is not.
    """
    for name, _ in asks:
        if name not in served:
            others = sorted(each for each in served if each != ensemble)
            there = ", ".join(others[:LISTED]) + (f" and {len(others) - LISTED} more" if len(others) > LISTED else "")
            raise ConfigError(
                f"the ensemble '{ensemble}' asks for a model '{name}', which is not served; there are: "
                f"{there or 'no others'}"
            )


def process_numbers(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the processes of a hosted model: `octavo.hosting.info.HostedInfo.process_numbers`."""
    return tuple(facts["numbers"]) or tuple(range(1, facts["processes"] + 1))


def hosted_facts(status: WorkerStatus) -> dict[str, Any]:
    """What a hosted model's process said of itself when it was ready: `octavo.hosting.info.HostedInfo`, which is not
    imported here, for it takes numpy."""
    return msgspec.json.decode(status.payload, type=dict[str, Any])
