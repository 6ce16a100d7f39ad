"""A frontend's end of a model that processes compute: what they are asked for, and what comes back, whichever does."""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import msgspec
from msgspec.structs import replace

from octavo.hosting.admission import Admission
from octavo.hosting.calls import Calls
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Inference, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.instance import Instance
from octavo.hosting.instances import Instances
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending, Result
from octavo.hosting.probes import Probes
from octavo.hosting.sequence_routing import explained, sequence_of, still_to_begin
from octavo.hosting.tensors import Buffer
from octavo.hosting.trace import Span
from octavo.hosting.wire import (
    Call,
    Details,
    Ended,
    Failed,
    Family,
    Figures,
    Infer,
    Output,
    Pace,
    Probed,
    Reply,
    Unknown,
)
from octavo.worker.control import NOTHING, WorkerState, WorkerStatus

MAX_DEATHS = 3
"""Of processes that held a request without computing it: then something in it may be what they die of."""

LOADING_RETRY_SECONDS = 2.0


class HostedClient(ModelClient):
    """Asks the processes that compute a model.

    Args:
        on_culprit: called with a worker's name when it is known what it died of.
        calls: does what the model wants of others; without it, it can ask none.
        version: of the model.
    """

    state = WorkerState.LOADING
    failure: str | None = None
    info: HostedInfo | None = None
    edition = ""

    def __init__(
        self,
        *,
        on_culprit: Callable[[str], None] = lambda worker: None,
        calls: Calls | None = None,
        version: str = "1",
    ) -> None:
        super().__init__(version)
        self._on_culprit = on_culprit
        self._calls = calls
        self._probes = Probes()
        self._instances = Instances(self)
        self._waiting: deque[Pending] = deque()
        self._ordered: deque[Pending] = deque()
        self._admission = Admission()
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
        return self._instances.names

    def add(self, worker: str) -> None:
        """There is a process of that name, whose statuses will be told."""
        self._instances.add(worker)

    def keep(self, workers: Collection[str]) -> None:
        """Its other processes only end what they have begun."""
        self._instances.keep(workers)

    @property
    def figures(self) -> list[Family]:
        """Those of the model's own, of each of its processes."""
        return [family for each in self._instances for family in each.figures]

    @property
    def pending(self) -> int:
        """Requests that wait or are computed."""
        return self._admission.requests

    async def confirms(self) -> bool:
        """As `ModelClient.confirms`."""
        if self.info is None:
            return True
        if self.info.asks and (self._calls is None or not self._calls.are_ready(self.info.asks)):
            return False
        if not self.info.probes:
            return True
        return await self._probes.all_ready(self._instances.staying.values())

    async def ready(self) -> HostedInfo:
        """As `ModelClient.ready`."""
        await self._settled.wait()
        if self.info is None:
            raise InferenceError(self.failure or "the model was stopped", Code.UNAVAILABLE)
        return self.info

    # --- requests -----------------------------------------------------------------------------------------------------

    def begin(self, inference: Inference | Outlined, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin`."""
        info = self._require_info()
        if isinstance(inference, Inference):
            inference = self.outline(inference)
        outline, details, trace = inference.outline, inference.details, inference.trace
        if trace is not None and info.details:
            details = replace(details or Details(), trace=trace.number)
        within = details.within if details is not None else ()
        message = Infer(
            next(self._numbers),
            outline.parts,
            time.monotonic(),
            outline.outputs,
            inference.priority,
            inference.timeout,
            details if info.details or within else None,
        )
        if within:
            self._require_free(within)
        if info.asks is not None and details is not None and info.name in details.path:
            raise InferenceError(_CIRCLE.format("' -> '".join((*details.path, info.name))), Code.INTERNAL)
        return self._begin(info, message, inference.tensors, outline.items, on_end, within=within, trace=trace)

    def outline(self, inference: Inference) -> Outlined:
        """As `ModelClient.outline`."""
        return self._outlined(self._require_info(), inference)

    def begin_call(self, call: BodyCall, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin_call`."""
        info = self._require_info()
        if info.body is None:
            raise InferenceError(f"model '{info.name}' takes tensors, and no bodies of its own")
        message = Call(next(self._numbers), call.media_type, time.monotonic(), call.priority, call.timeout)
        return self._begin(info, message, [call.body], 1, on_end)

    def _require_info(self) -> HostedInfo:
        """What the model is. Raises InferenceError: nothing can be asked of it."""
        if self.info is not None and self.state in _ASKED:
            return self.info
        match self.state:
            case WorkerState.FAILED:
                raise InferenceError(f"the model failed: {self.failure}", Code.UNAVAILABLE)
            case WorkerState.STOPPED:
                raise InferenceError("the server is shutting down", Code.UNAVAILABLE)
        raise InferenceError("the model is loading", Code.UNAVAILABLE, retry_after=LOADING_RETRY_SECONDS)

    def _begin(
        self,
        info: HostedInfo,
        message: Infer | Call,
        tensors: Sequence[Buffer],
        items: int,
        on_end: Callable[[Pending], None] | None = None,
        *,
        within: tuple[str, ...] = (),
        trace: Span | None = None,
    ) -> Pending:
        batching = info.queue
        number = batching.level(message.priority)
        policy = batching.policy(number)
        seconds = policy.timeout(message.timeout)
        try:
            self._admission.check(info, number, seconds)
        except InferenceError:
            self.statistics.failure += 1
            self.statistics.rejected += 1
            raise
        pending = Pending(self._loop, message, tensors, items, number, on_end, within)
        if trace is not None:
            pending.start_trace(trace, info.name, self.version)
        level = self._admission.level(number)
        level.requests += 1
        level.items += items
        if seconds and not policy.delays:
            pending.timer = self._loop.call_later(seconds, self._expire, pending)
        if batching.preserve_ordering:
            self._ordered.append(pending)
        self._place(pending)
        return pending

    def _require_free(self, within: Sequence[str]) -> None:
        """Raises InferenceError: all of its processes wait for this request to be computed, and would for ever."""
        staying = self._instances.staying
        if staying.keys() <= set(within):
            raise InferenceError(
                f"the model asks for itself, and all of its instances ({len(staying)}) wait for what comes of "
                "that; with more of them (instance_group.count) it could be computed"
            )

    def _place(self, pending: Pending) -> None:
        """Ask the instance that has least to do; or wait for one."""
        info = self.info
        if info is not None and info.sequencing is not None and (sequence := sequence_of(pending)):
            best = self._instances.of_sequence(sequence, pending, info)
            if best.can_take(pending):
                best.ask(pending)
            elif best.name in pending.within:
                self._fail(pending, InferenceError("the model asks for itself, in a sequence that it is computing"))
            else:
                self._waiting.append(pending)
            return
        found = self._instances.least_busy(pending)
        if found is None:
            self._waiting.append(pending)
        else:
            found.ask(pending)

    def leave(self, pending: Pending) -> None:
        """Nobody reads what comes of a request any more; of one that has ended, that is so already."""
        pending.on_end = None  # also if it is settled, and waits for its turn to be told so
        if not pending.settled:
            self.statistics.failure += 1
            self.statistics.canceled += 1
            self._drop(pending)
            self._end(pending)

    def _drop(self, pending: Pending) -> None:
        """Compute a request no longer."""
        for instance in self._instances:
            instance.cancel(pending)
        if pending in self._waiting:
            self._waiting.remove(pending)

    def _expire(self, pending: Pending) -> None:
        """It has waited for as long as it may, unless it is computed already."""
        if pending.settled or any(
            pending.number in each.outstanding and each.computes(pending) for each in self._instances
        ):
            return
        self._drop(pending)
        self.statistics.rejected += 1
        self._fail(pending, InferenceError("Request timeout expired", Code.UNAVAILABLE))

    # --- what comes back ----------------------------------------------------------------------------------------------

    def on_reply(self, instance: Instance, pending: Pending | None, reply: Reply, data: memoryview) -> None:
        """An instance said something of a request; None if nobody waits for that any more, or of none."""
        if pending is None:
            if isinstance(reply, Pace):
                self._admission.pace = reply
            elif isinstance(reply, Figures):
                instance.figures = reply.families
            elif isinstance(reply, Probed):
                self._probes.on_probed(reply)
            elif self._calls is not None:
                self._calls.on_message(instance, reply, data)
            return
        if isinstance(reply, Output):
            if reply.last:
                del instance.outstanding[pending.number]
                self._succeed(pending, reply, (reply, data))
            else:
                pending.put(reply, data)
                if pending.overflows:
                    instance.cancel(pending)
                    self._fail(pending, InferenceError("the client does not read as fast as the model writes"))
        elif isinstance(reply, Unknown):
            del instance.outstanding[pending.number]
            self._place(pending)
        elif isinstance(reply, Ended):
            del instance.outstanding[pending.number]
            self._succeed(pending, reply)
        elif isinstance(reply, Failed):
            del instance.outstanding[pending.number]
            self._note(pending, reply, 0)
            error = InferenceError(
                explained(reply.message, instance), Code(reply.code), retry_after=reply.retry_after, field=reply.field
            )
            if reply.timing is not None:
                self.statistics.failed_computing += 1
            else:
                self.statistics.rejected += error.code is Code.UNAVAILABLE
            self._fail(pending, error)

    def _succeed(self, pending: Pending, reply: Output | Ended, last: Result | None = None) -> None:
        self.statistics.success += 1
        self.statistics.success_time += time.perf_counter_ns() - pending.arrived
        self._note(pending, reply, pending.items)
        self._end(pending, last)

    def _fail(self, pending: Pending, error: InferenceError) -> None:
        self.statistics.failure += 1
        self.statistics.failure_time += time.perf_counter_ns() - pending.arrived
        self._end(pending, error=error)

    def _end(self, pending: Pending, last: Result | None = None, error: InferenceError | None = None) -> None:
        """Tell a request its end; where replies keep the order of requests, once those before it have had theirs."""
        pending.settle(last, error)
        level = self._admission.level(pending.level)
        level.requests -= 1
        level.items -= pending.items
        if not self._ordered:
            pending.end()
            return
        while self._ordered and self._ordered[0].settled:
            self._ordered.popleft().end()

    def _note(self, pending: Pending, reply: Output | Ended | Failed, items: int) -> None:
        timing = reply.timing
        if timing is None:
            return
        if pending.trace is not None:
            pending.trace.computed(pending.message.arrived, timing)
        self.statistics.note(timing, items)

    # --- what the processes do ----------------------------------------------------------------------------------------

    def update(self, status: WorkerStatus) -> None:
        """Learn where a process of the model stands."""
        instance = self._instances.get(status.name)
        if status.name in self._instances.leaving:
            instance.update(status)
            if status.state in (WorkerState.FAILED, WorkerState.STOPPED):
                self._instances.forget(status.name)
            return
        if status.payload != NOTHING and status.name == self._instances.first:
            # The others say the same, but maybe later: one that ends meanwhile would go on saying what was before.
            self.info = msgspec.json.decode(status.payload, type=HostedInfo)
        if self.info is not None:
            instance.limit = self.info.execution_timeout
        instance.update(status)
        staying = self._instances.staying.values()
        self.edition = ", ".join([f"{each.name}: {each.incarnation}" for each in staying])
        states = {each.state for each in staying}
        previous, self.state = self.state, next(state for state in _BEST_FIRST if state in states)
        self.failure = next((each.failure for each in staying if each.failure), None)
        if self.state in (WorkerState.READY, WorkerState.FAILED, WorkerState.STOPPED):
            self._settled.set()
        if self.state is not previous and self.state in (WorkerState.FAILED, WorkerState.STOPPED):
            stopped = self.state is WorkerState.STOPPED
            why = "the server is shutting down" if stopped else f"the model failed: {self.failure}"
            while self._waiting:
                self._fail(self._waiting.popleft(), InferenceError(why, Code.UNAVAILABLE))

    def close(self) -> None:
        """Ask nothing any more."""
        for instance in self._instances:
            instance.close()

    def on_lost(self, instance: Instance) -> None:
        """An instance has ended, or its connection has: it wants nothing any more."""
        if self._calls is not None:
            self._calls.leave(instance)

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
                self.statistics.failed_computing += 1
                self._fail(pending, InferenceError(f"the model failed: {why}{again}", Code.INTERNAL))

    def on_waiting(self, lost: Sequence[Pending]) -> None:
        """An instance is gone where these waited."""
        lost, ended = still_to_begin(lost)
        for pending, error in ended:
            self._fail(pending, error)
        for pending in lost:
            pending.deaths += 1
            if pending.deaths >= MAX_DEATHS:
                why = f"{pending.deaths} processes of the model ended while they held this request"
                self._fail(pending, InferenceError(why, Code.INTERNAL))
            elif self.state in (WorkerState.FAILED, WorkerState.STOPPED):
                self._fail(pending, InferenceError("the model is not served any more", Code.UNAVAILABLE))
            else:
                self._place(pending)


_CIRCLE = "ensembles ask for each other in a circle, which would never end: '{}'"

_BEST_FIRST = (
    WorkerState.READY,
    WorkerState.RESTARTING,
    WorkerState.LOADING,
    WorkerState.FAILED,
    WorkerState.STOPPED,
)

_ASKED = frozenset((WorkerState.READY, WorkerState.RESTARTING, WorkerState.LOADING))
"""In which something can be asked of a model that has been loaded once."""
