"""One worker as its supervisor sees it: its processes, one after the other, and when the next one is started."""

import asyncio
import contextlib
import errno
import logging
import signal
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from octavo.worker.control import (
    NOTHING,
    Ask,
    Configure,
    CulpritFound,
    Failed,
    Finish,
    Loading,
    Order,
    Ready,
    Report,
    Stop,
    Sync,
    Synced,
    WorkerState,
    WorkerStatus,
    decode_report,
    encode,
)
from octavo.worker.launcher import Process, WorkerSpec

if TYPE_CHECKING:
    from octavo.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Of descriptors, memory or processes: they pass, so that trying again is never given up."""

TRANSITIONS = {
    WorkerState.LOADING: {WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.READY: {WorkerState.RESTARTING, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.RESTARTING: {WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED},
    WorkerState.FAILED: {WorkerState.STOPPED},
    WorkerState.STOPPED: set(),
}


class Worker:
    """One worker's processes, one after the other.

    Attributes:
        spec: what its next process is started with. status: where it stands. settled: set while that is known.
        unexplained: when its processes have died, those that no culprit explains. task: ends with the last of them.
    """

    def __init__(self, supervisor: "Supervisor", spec: WorkerSpec) -> None:
        self.spec = spec
        self.status = WorkerStatus(name=spec.name)
        self.settled = asyncio.Event()
        self.unexplained: deque[float] = deque()
        self._supervisor = supervisor
        self._process: Process | None = None
        self._died = 0.0
        self._syncs = 0
        self._unsynced: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._unconfigured: list[asyncio.Event] = []
        self._retiring = False
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

    async def configure(self, configuration: bytes) -> None:
        """Have the process go on with another configuration; wait until it does, or an heir."""
        self.spec = replace(self.spec, configuration=configuration)
        does = asyncio.Event()
        self._unconfigured.append(does)
        self.send(Configure(msgspec.Raw(configuration)))
        waiting = asyncio.create_task(does.wait())
        await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def retire(self) -> None:
        """Let the process end what it has begun, and then itself. Whoever had to take its place is not needed."""
        if self.status.state is not WorkerState.READY:
            await self.stop()
            return
        self._retiring = True
        self.send(Finish())
        await asyncio.shield(self.task)

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
        if self._retiring and self.status.state is not WorkerState.STOPPED:
            self._move(WorkerState.STOPPED)
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
                    if self.status.state is WorkerState.READY:
                        self._change(payload=payload.copy())
                    else:
                        self._move(WorkerState.READY, payload=payload.copy())
                for does in self._unconfigured:
                    does.set()
                self._unconfigured.clear()
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
