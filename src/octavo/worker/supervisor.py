"""Starting workers, watching them and starting them again. A supervisor holds no request and computes nothing."""

import asyncio
import contextlib
import errno
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from octavo.errors import OctavoError
from octavo.logs import LogSettings
from octavo.worker.control import (
    NOTHING,
    Answer,
    Ask,
    CulpritFound,
    Failed,
    Loading,
    Notice,
    Order,
    Ready,
    Report,
    SetLogging,
    Stop,
    Sync,
    Synced,
    WorkerState,
    WorkerStatus,
    decode_report,
    encode,
)
from octavo.worker.launcher import Launcher, Process, WorkerSpec

log = logging.getLogger(__name__)

Handler = Callable[[str, msgspec.Raw], Awaitable[msgspec.Raw]]
"""Answers what the process of that name asks for. An OctavoError becomes the answer's error."""

Subscriber = Callable[[WorkerStatus], None]

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Of descriptors, memory or processes: they pass, so that trying again is never given up."""

TRANSITIONS = {
    WorkerState.LOADING: {WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.READY: {WorkerState.RESTARTING, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.RESTARTING: {WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.FAILED: {WorkerState.STOPPED},
    WorkerState.STOPPED: set(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a worker that died is started again.

    Attributes:
        window: seconds for which a death counts.
        max_deaths: with more of them that no culprit explains, the worker is given up.
        first_delay, max_delay: seconds before a restart; from the second death on, doubled with each, up to the latter.
        grace: seconds that a process has to end when it is asked to.
    """

    window: float = 300.0
    max_deaths: int = 12
    first_delay: float = 0.1
    max_delay: float = 5.0
    grace: float = 5.0

    def delay(self, deaths: int) -> float:
        """Seconds to wait after so many deaths."""
        return 0.0 if deaths <= 1 else min(self.first_delay * 2.0 ** (deaths - 2), self.max_delay)


class Supervisor:
    """Runs workers in the event loop of the caller.

    Args:
        launcher: starts the processes; closed by `stop`.
        handler: answers what processes ask for; without one they are told that nobody does.
        logging: how processes log; without it, as they do.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        handler: Handler | None = None,
        policy: RestartPolicy | None = None,
        logging: LogSettings | None = None,
    ) -> None:
        self._launcher = launcher
        self._handler = handler
        self._policy = policy or RestartPolicy()
        self._logging = logging
        self._workers: dict[str, _Worker] = {}
        self._subscribers: list[Subscriber] = []
        self._answers: set[asyncio.Task[None]] = set()

    def add(self, spec: WorkerSpec) -> None:
        """Start a worker and keep it running. Returns at once; its status tells what becomes of it."""
        if spec.name in self._workers:
            raise ValueError(f"there is a worker {spec.name!r} already")
        self._workers[spec.name] = _Worker(self, spec)

    async def remove(self, name: str) -> None:
        """End a worker. What is still being computed is lost: drain first."""
        worker = self._workers[name]
        await worker.stop()
        if self._workers.get(name) is worker:  # whoever else removes it may have been quicker
            del self._workers[name]

    async def finish(self, name: str, drain_seconds: float) -> None:
        """Have an informed process end what is under way, so long at most, and then itself; no heir takes its place.

        Another `Stop`, sent meanwhile, makes it end at once.
        """
        await self._workers[name].finish(drain_seconds)

    async def stop(self) -> None:
        """End all workers."""
        await asyncio.gather(*(self.remove(name) for name in list(self._workers)))
        for answer in self._answers:
            answer.cancel()
        self._launcher.close()

    def status(self, name: str) -> WorkerStatus:
        """Where a worker stands. Raises KeyError."""
        return self._workers[name].status

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have every status told, those of now at once. Returns what ends it."""
        self._subscribers.append(subscriber)
        for worker in self._workers.values():
            subscriber(worker.status)
        return lambda: self._subscribers.remove(subscriber)

    async def settled(self, name: str) -> WorkerStatus:
        """Wait until a worker is ready, has failed for good or was stopped."""
        worker = self._workers[name]
        await worker.settled.wait()
        return worker.status

    async def ended(self, name: str) -> WorkerStatus:
        """Wait until a worker has failed for good or was stopped."""
        worker = self._workers[name]
        await asyncio.shield(worker.task)
        return worker.status

    def send(self, name: str, order: Order) -> None:
        """Tell a process something; it is lost when there is none at the moment."""
        self._workers[name].send(order)

    def notify(self, payload: msgspec.Raw) -> None:
        """Tell every informed process something. Heirs learn it from their configuration: see `reconfigure`."""
        for worker in self._workers.values():
            if worker.spec.informed:
                worker.send(Notice(payload))

    def set_logging(self, settings: LogSettings) -> None:
        """Have all processes log in another way: those that there are, and those that will be."""
        self._logging = settings
        for worker in self._workers.values():
            worker.send(SetLogging(settings))

    async def synced(self, name: str, payload: msgspec.Raw = NOTHING) -> msgspec.Raw:
        """Wait until an informed process has handled all that it was told before, or has ended. Returns what it says to
        a payload."""
        return await self._workers[name].synced(payload)

    def reconfigure(self, name: str, configuration: bytes) -> None:
        """Have the heirs of a worker's process start with another configuration."""
        worker = self._workers[name]
        worker.spec = replace(worker.spec, configuration=configuration)

    def culprit_found(self, name: str) -> None:
        """A worker's deaths are explained: they are no reason to give it up."""
        if name in self._workers:
            self._workers[name].unexplained.clear()

    # --- for the workers ------------------------------------------------------------------------------------------

    async def launch(self, spec: WorkerSpec) -> Process:
        """Start a process. Raises OSError."""
        logging = self._logging
        process = await self._launcher.launch(spec, b"" if logging is None else encode(SetLogging(logging)))
        if self._logging is not None and self._logging is not logging:  # nobody could tell it meanwhile
            process.write(encode(SetLogging(self._logging)))
        return process

    @property
    def policy(self) -> RestartPolicy:
        """When they are started again."""
        return self._policy

    def publish(self, status: WorkerStatus) -> None:
        """Tell everybody who is to know where a worker stands."""
        for subscriber in list(self._subscribers):
            subscriber(status)
        for worker in self._workers.values():
            if worker.spec.informed and worker.spec.name != status.name:
                worker.send(status)

    def inform(self, worker: "_Worker") -> None:
        """Tell a new process where the other workers stand."""
        for other in self._workers.values():
            if other is not worker:
                worker.send(other.status)

    def answer(self, worker: "_Worker", ask: Ask) -> None:
        """Work out an answer, and send it when it is there."""
        task = asyncio.create_task(self._answer(worker, ask))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, worker: "_Worker", ask: Ask) -> None:
        try:
            if self._handler is None:
                raise OctavoError("nothing can be asked of this server")
            answer = Answer(ask.number, await self._handler(worker.spec.name, ask.payload))
        except OctavoError as error:
            answer = Answer(ask.number, error=str(error))
        except Exception:
            log.exception("cannot answer what %s asks for", worker.spec.name)
            answer = Answer(ask.number, error="the supervisor had an error; its log says which")
        worker.send(answer)


class _Worker:
    """One worker's processes, one after the other."""

    def __init__(self, supervisor: Supervisor, spec: WorkerSpec) -> None:
        self.spec = spec
        self.status = WorkerStatus(name=spec.name)
        self.settled = asyncio.Event()
        self.unexplained: deque[float] = deque()
        self._supervisor = supervisor
        self._process: Process | None = None
        self._died = 0.0
        self._syncs = 0
        self._unsynced: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._stopping = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"supervise {spec.name}")

    def send(self, order: Order) -> None:
        """Write to the process that runs now, if there is one."""
        if self._process is not None:
            self._process.write(encode(order))

    async def synced(self, payload: msgspec.Raw) -> msgspec.Raw:
        """As `Supervisor.synced`."""
        if self._process is None:
            return NOTHING
        number = self._syncs = self._syncs + 1
        handled: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._unsynced[number] = handled
        self.send(Sync(number, payload))
        return await handled

    async def stop(self) -> None:
        """End the process and the watching."""
        self._stopping.set()
        if self.status.state is not WorkerState.STOPPED:
            self._move(WorkerState.STOPPED)
        if self._process is not None:
            await self._process.end(self._supervisor.policy.grace)
        await self.task

    async def finish(self, drain_seconds: float) -> None:
        """Let the process end by itself, or end it when it does not."""
        self._stopping.set()
        self._move(WorkerState.STOPPED)
        self.send(Stop(drain_seconds))
        grace = self._supervisor.policy.grace
        await asyncio.wait({self.task}, timeout=drain_seconds + 2 * grace)
        if self._process is not None:
            await self._process.end(grace)
        await self.task

    async def _run(self) -> None:
        try:
            while self.status.state not in (WorkerState.FAILED, WorkerState.STOPPED):
                await self._one_life()
        except Exception as error:
            log.exception("the supervision of %s failed", self.spec.name)
            if self._process is not None:
                self._process.kill()
            if not self._stopping.is_set():
                self._give_up(f"its supervision failed: {type(error).__name__}")

    async def _one_life(self) -> None:
        """Run a process until it ends, and wait until its heir may start, if there is to be one."""
        policy = self._supervisor.policy
        self._change(failure=None)
        shortage = False
        try:
            exit_status = await self._run_process()
            why = self.status.failure or f"the process of {self.spec.name} {_ending(exit_status)}"
        except OSError as error:
            why = f"no process can be started for {self.spec.name}: {error}"
            shortage = error.errno in SHORTAGES
        match self.status.state:
            case WorkerState.STOPPED:
                return
            case WorkerState.LOADING:
                self._give_up(self.status.failure or f"{why} while loading")
                return
            case WorkerState.READY:
                self._died = time.monotonic()
                self._move(WorkerState.RESTARTING, failure=why)
        if not shortage:
            self._note_death()
        deaths = len(self.unexplained)
        delay = policy.max_delay if shortage else policy.delay(deaths)
        log.error("%s; restarting it%s", why, f" in {delay:g} s" if delay else "")
        await self._pause(delay)
        # Only now: a frontend may have found the culprit meanwhile.
        if len(self.unexplained) > policy.max_deaths and not self._stopping.is_set():
            self._give_up(f"{self.spec.name} died {deaths} times within {policy.window:g} s: {why}")

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than the worker is wanted."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _run_process(self) -> int:
        """Start a process, hear what it reports until it ends, and return its exit status."""
        self._process = process = await self._supervisor.launch(self.spec)
        self._change(address=process.address, pid=process.pid, incarnation=self.status.incarnation + 1, progress=(0, 0))
        try:
            if self.spec.informed:
                self._supervisor.inform(self)
            if self._stopping.is_set():
                await process.end(self._supervisor.policy.grace)
            while line := await process.read():
                self._note_report(decode_report(line))
        except (msgspec.DecodeError, ValueError):
            log.exception("%s reports what nobody understands", self.spec.name)
            process.kill()
        try:
            return await process.wait()
        finally:
            self._process = None
            unsynced, self._unsynced = self._unsynced, {}
            for handled in unsynced.values():
                if not handled.done():
                    handled.set_result(NOTHING)
            self._change(address=None, pid=None)

    def _note_report(self, report: Report) -> None:
        match report:
            case Loading(done, total):
                self._change(progress=(done, total))
            case Ready(payload, configuration):
                if configuration != NOTHING:
                    self.spec = replace(self.spec, configuration=bytes(configuration))
                if not self._stopping.is_set():
                    if self.status.state is WorkerState.RESTARTING:
                        log.warning("%s is ready again after %.1f s", self.spec.name, time.monotonic() - self._died)
                    self._move(WorkerState.READY, payload=payload.copy())
            case Failed(message):
                self._change(failure=message)
            case CulpritFound(worker):
                self._supervisor.culprit_found(worker)
            case Ask():
                self._supervisor.answer(self, report)
            case Synced(number, payload):
                handled = self._unsynced.pop(number)
                if not handled.done():  # whoever waited has lost patience
                    handled.set_result(payload.copy())

    def _note_death(self) -> None:
        now = time.monotonic()
        self.unexplained.append(now)
        while now - self.unexplained[0] > self._supervisor.policy.window:
            self.unexplained.popleft()

    def _give_up(self, why: str) -> None:
        if self.status.state is not WorkerState.LOADING:  # then whoever waits for it says it
            log.error("%s: giving up", why)
        self._move(WorkerState.FAILED, failure=why)

    def _move(self, state: WorkerState, **changes: object) -> None:
        """Go to another state."""
        if state not in TRANSITIONS[self.status.state]:
            raise AssertionError(f"{self.spec.name} cannot go from {self.status.state} to {state}")
        self._change(state=state, **changes)
        if state is not WorkerState.RESTARTING:
            self.settled.set()
        else:
            self.settled.clear()

    def _change(self, **changes: object) -> None:
        self.status = msgspec.structs.replace(self.status, **changes)
        self._supervisor.publish(self.status)


def _ending(exit_status: int) -> str:
    """How a process has ended, for a person."""
    if exit_status >= 0:
        return f"ended with status {exit_status}"
    try:
        return f"was ended by {signal.Signals(-exit_status).name}"
    except ValueError:  # a real-time signal, which has no name
        return f"was ended by signal {-exit_status}"
