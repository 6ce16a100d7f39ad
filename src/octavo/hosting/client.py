"""A frontend's end of a hosted model: what it is asked for, and what comes back, whichever process computes it."""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import msgspec

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BatchStatistics, Body, BodyCall, Inference, Statistics
from octavo.hosting.info import HostedInfo
from octavo.hosting.instance import Instance
from octavo.hosting.pending import Pending
from octavo.hosting.tensors import Buffer, Encoded, Place
from octavo.hosting.wire import Call, Ended, Failed, Infer, Output, Pace, Reply, parts_of, tensors_of
from octavo.worker.control import NOTHING, WorkerState, WorkerStatus

MAX_DEATHS = 3
"""Of processes that held a request without computing it: then something in it may be what they die of."""

LOADING_RETRY_SECONDS = 2.0


class HostedClient:
    """A hosted model as a frontend sees it.

    Attributes:
        state: what it can do now. failure: why it cannot. info: what it is, once it is loaded.
        statistics: of this frontend's requests.

    Args:
        on_culprit: called with a worker's name when it is known what it died of.
    """

    def __init__(self, *, on_culprit: Callable[[str], None] = lambda worker: None) -> None:
        self.state = WorkerState.LOADING
        self.failure: str | None = None
        self.info: HostedInfo | None = None
        self.statistics = Statistics()
        self._on_culprit = on_culprit
        self._instances: dict[str, Instance] = {}
        self._waiting: deque[Pending] = deque()
        self._ordered: deque[tuple[Pending, Callable[[], None] | None]] = deque()
        self._pace = Pace(0.0, 0.0)
        self._levels: dict[int, _Level] = {}
        # Numbers are never used twice, by whichever frontend: what is said of one is said of one request.
        self._numbers = itertools.count(secrets.randbits(31) << 32)
        self._settled = asyncio.Event()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Where this is used. To ask for it costs a call of the operating system each time."""
        return asyncio.get_running_loop()

    @property
    def workers(self) -> Collection[str]:
        """The names of its processes."""
        return self._instances.keys()

    def add(self, worker: str) -> None:
        """There is a process of that name, whose statuses will be told."""
        self._instances[worker] = Instance(worker, self)

    @property
    def pending(self) -> int:
        """Requests that wait or are computed."""
        return sum(each.requests for each in self._levels.values())

    async def ready(self) -> HostedInfo:
        """Wait until the model takes requests.

        Raises:
            InferenceError: it never will; the message says why.
        """
        await self._settled.wait()
        if self.info is None:
            raise InferenceError(self.failure or "the model was stopped", Code.UNAVAILABLE)
        return self.info

    # --- requests -----------------------------------------------------------------------------------------------------

    async def infer(self, inference: Inference) -> dict[str, Encoded]:
        """The outputs of a request, which is checked first. To cancel it takes it out of the queue.

        Raises:
            InferenceError: it does not fit the model, is not taken at the moment, or failed; or the model streams.
        """
        pending = self._begin_inference(inference)
        try:
            output, data = await pending.only()
        finally:
            self._leave(pending)
        return tensors_of(output.parts, data)

    async def stream(self, inference: Inference) -> AsyncIterator[dict[str, Encoded]]:
        """All the results of a request, one after the other; of a model that does not stream, one.

        Raises:
            InferenceError: as `infer`, when the first result is asked for or later.
        """
        pending = self._begin_inference(inference)
        try:
            while result := await pending.next():
                output, data = result
                yield tensors_of(output.parts, data)
        finally:
            self._leave(pending)

    async def call(self, call: BodyCall) -> Body:
        """As `infer`, of a body."""
        pending = self._begin_call(call)
        try:
            output, data = await pending.only()
        finally:
            self._leave(pending)
        return Body(output.media_type, data)

    async def stream_call(self, call: BodyCall) -> AsyncIterator[Body]:
        """As `stream`, of a body."""
        pending = self._begin_call(call)
        try:
            while result := await pending.next():
                output, data = result
                yield Body(output.media_type, data)
        finally:
            self._leave(pending)

    def _begin_inference(self, inference: Inference) -> Pending:
        info = self._require_info()
        try:
            items = info.signature.check(inference.inputs, inference.outputs)
            for name, tensor in inference.inputs.items():
                tensor.check(Place(name, info.name))
        except InferenceError:
            self.statistics.failure += 1
            raise
        tensors = [each.data for each in inference.inputs.values()]
        message = Infer(
            next(self._numbers),
            parts_of(inference.inputs),
            time.monotonic(),
            tuple(inference.outputs),
            inference.priority,
            inference.timeout,
        )
        return self._begin(message, tensors, items)

    def _begin_call(self, call: BodyCall) -> Pending:
        info = self._require_info()
        if info.body is None:
            raise InferenceError(f"model '{info.name}' takes tensors, and no bodies of its own")
        message = Call(next(self._numbers), call.media_type, time.monotonic(), call.priority, call.timeout)
        return self._begin(message, [call.body], 1)

    def _require_info(self) -> HostedInfo:
        """What the model is. Raises InferenceError: nothing can be asked of it."""
        match self.state:
            case WorkerState.FAILED:
                raise InferenceError(f"the model failed: {self.failure}", Code.UNAVAILABLE)
            case WorkerState.STOPPED:
                raise InferenceError("the server is shutting down", Code.UNAVAILABLE)
        if self.info is None:
            raise InferenceError("the model is loading", Code.UNAVAILABLE, retry_after=LOADING_RETRY_SECONDS)
        return self.info

    def _begin(self, message: Infer | Call, tensors: Sequence[Buffer], items: int) -> Pending:
        assert self.info is not None
        batching = self.info.queue
        level = batching.level(message.priority)
        seconds = batching.policy(level).timeout(message.timeout)
        try:
            self._admit(batching, level, seconds)
        except InferenceError:
            self.statistics.failure += 1
            self.statistics.rejected += 1
            raise
        pending = Pending(self._loop, message, tensors, items, level)
        self._level(level).count(1, items)
        if seconds and not batching.policy(level).delays:
            pending.timer = self._loop.call_later(seconds, self._expire, pending)
        if batching.preserve_ordering:
            self._ordered.append((pending, None))
        self._place(pending)
        return pending

    def _admit(self, batching: Batching, level: int, seconds: float) -> None:
        """Refuse at once what would be refused by a process that may be busy. Raises InferenceError."""
        policy = batching.policy(level)
        assert self.info is not None
        waiting = self._level(level).requests - self.info.at_once * batching.max_batch_size
        if policy.max_queue_size and waiting >= policy.max_queue_size:
            raise InferenceError(
                f"Exceeds maximum queue size: {policy.max_queue_size} requests wait already",
                Code.UNAVAILABLE,
                retry_after=self._expected_wait(batching, level) or None,
            )
        if seconds and not policy.delays and (expected := self._expected_wait(batching, level)) > seconds:
            raise InferenceError(
                f"Request timeout expired: it may wait for {seconds:g} s, and would for {expected:.3g} s",
                Code.UNAVAILABLE,
                retry_after=expected,
            )

    def _expected_wait(self, batching: Batching, level: int) -> float:
        assert self.info is not None
        items = sum(there.items for each, there in self._levels.items() if each <= level)
        most = batching.max_batch_size
        batches = max(items // most + 1 - self.info.at_once, 0)
        return batches * (self._pace.per_batch + self._pace.per_item * most) / self.info.at_once

    def _level(self, level: int) -> "_Level":
        found = self._levels.get(level)
        if found is None:
            found = self._levels[level] = _Level()
        return found

    def _place(self, pending: Pending) -> None:
        """Ask the instance that has least to do; or wait for one."""
        best: Instance | None = None
        for each in self._instances.values():
            if each.is_open and (best is None or len(each.outstanding) < len(best.outstanding)):
                best = each
        if best is None:
            self._waiting.append(pending)
        else:
            best.ask(pending)

    def _leave(self, pending: Pending) -> None:
        """Nobody reads what comes of a request any more."""
        if not pending.settled:
            self.statistics.failure += 1
            self.statistics.canceled += 1
            self._drop(pending)
            self._end(pending, lambda: pending.end())

    def _drop(self, pending: Pending) -> None:
        """Compute a request no longer."""
        for instance in self._instances.values():
            instance.cancel(pending)
        if pending in self._waiting:
            self._waiting.remove(pending)

    def _expire(self, pending: Pending) -> None:
        """It has waited for as long as it may, unless it is computed already."""
        if pending.settled or any(
            pending.number in each.outstanding and each.computes(pending) for each in self._instances.values()
        ):
            return
        self._drop(pending)
        self.statistics.rejected += 1
        self._fail(pending, InferenceError("Request timeout expired", Code.UNAVAILABLE))

    # --- what comes back ----------------------------------------------------------------------------------------------

    def on_reply(self, instance: Instance, pending: Pending | None, reply: Reply, data: memoryview) -> None:
        """An instance said something of a request; None if nobody waits for that any more, or of none."""
        if isinstance(reply, Pace):
            self._pace = reply
        if pending is None:
            return
        match reply:
            case Output(last=True):
                del instance.outstanding[pending.number]
                self._succeed(pending, reply, partial(pending.put, reply, data))
            case Output():
                pending.put(reply, data)
                if pending.overflows:
                    instance.cancel(pending)
                    self._fail(pending, InferenceError("the client does not read as fast as the model writes"))
            case Ended():
                del instance.outstanding[pending.number]
                self._succeed(pending, reply, None)
            case Failed():
                del instance.outstanding[pending.number]
                self._note(reply, 0)
                error = InferenceError(
                    reply.message, Code(reply.code), retry_after=reply.retry_after, field=reply.field
                )
                self.statistics.rejected += error.code is Code.UNAVAILABLE
                self._fail(pending, error)

    def _succeed(self, pending: Pending, reply: Output | Ended, deliver: Callable[[], None] | None) -> None:
        self.statistics.success += 1
        self.statistics.success_time += time.perf_counter_ns() - pending.arrived
        self._note(reply, pending.items)

        def finish() -> None:
            if deliver is not None:
                deliver()
            pending.end()

        self._end(pending, finish)

    def _fail(self, pending: Pending, error: InferenceError) -> None:
        self.statistics.failure += 1
        self.statistics.failure_time += time.perf_counter_ns() - pending.arrived
        self._end(pending, lambda: pending.end(error))

    def _end(self, pending: Pending, finish: Callable[[], None]) -> None:
        """Tell a request its end; where replies keep the order of requests, once those before it have had theirs."""
        pending.settled = True
        self._level(pending.level).count(-1, -pending.items)
        if not self._ordered:
            finish()
            return
        self._ordered = deque((each, finish if each is pending else end) for each, end in self._ordered)
        while self._ordered and (end := self._ordered[0][1]) is not None:
            self._ordered.popleft()
            end()

    def _note(self, reply: Output | Ended | Failed, items: int) -> None:
        timing = reply.timing
        if timing is None:
            return
        statistics = self.statistics
        statistics.last = time.time()
        statistics.inferences += items
        statistics.queue += timing.queue
        statistics.compute += timing.compute
        if timing.lead:
            statistics.executions += 1
            batch = statistics.batches.setdefault(timing.items, BatchStatistics())
            batch.count += 1
            batch.compute += timing.compute

    # --- what the processes do ----------------------------------------------------------------------------------------

    def update(self, status: WorkerStatus) -> None:
        """Learn where a process of the model stands."""
        instance = self._instances[status.name]
        if status.payload != NOTHING:
            self.info = msgspec.json.decode(status.payload, type=HostedInfo)
            instance.limit = self.info.execution_timeout
        instance.update(status)
        states = {each.state for each in self._instances.values()}
        previous, self.state = self.state, next(state for state in _BEST_FIRST if state in states)
        self.failure = next((each.failure for each in self._instances.values() if each.failure), None)
        if self.state in (WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED):
            self._settled.set()
        if self.state is not previous and self.state in (WorkerState.FAILED, WorkerState.STOPPED):
            stopped = self.state is WorkerState.STOPPED
            why = "the server is shutting down" if stopped else f"the model failed: {self.failure}"
            while self._waiting:
                self._fail(self._waiting.popleft(), InferenceError(why, Code.UNAVAILABLE))

    def close(self) -> None:
        """Ask nothing any more."""
        for instance in self._instances.values():
            instance.close()

    def on_open(self) -> None:
        """An instance can be asked."""
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            self._place(pending)

    def on_computed(self, instance: Instance, lost: Sequence[Pending], why: str) -> None:
        """An instance died while it computed these."""
        self._on_culprit(instance.name)
        again = "" if instance.state is WorkerState.FAILED else "; it is started again"
        for pending in lost:
            if pending.settled:
                continue
            if instance.state is WorkerState.STOPPED:
                self._fail(pending, InferenceError("the server is shutting down", Code.UNAVAILABLE))
            else:
                self._fail(pending, InferenceError(f"the model failed: {why}{again}", Code.INTERNAL))

    def on_waiting(self, lost: Sequence[Pending]) -> None:
        """An instance is gone where these waited."""
        for pending in lost:
            pending.deaths += 1
            if pending.deaths >= MAX_DEATHS:
                why = f"{pending.deaths} processes of the model ended while they held this request"
                self._fail(pending, InferenceError(why, Code.INTERNAL))
            elif self.state in (WorkerState.FAILED, WorkerState.STOPPED):
                self._fail(pending, InferenceError("the model is not served any more", Code.UNAVAILABLE))
            else:
                self._place(pending)


@dataclass(slots=True)
class _Level:
    """Requests of one priority, and their items."""

    requests: int = 0
    items: int = 0

    def count(self, requests: int, items: int) -> None:
        self.requests += requests
        self.items += items


_BEST_FIRST = (
    WorkerState.READY,
    WorkerState.RESTARTING,
    WorkerState.LOADING,
    WorkerState.FAILED,
    WorkerState.STOPPED,
)
