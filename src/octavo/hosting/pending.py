"""Requests that a frontend has asked for, and what has come back so far."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field

from octavo.hosting.errors import Code, InferenceError, forget_frames
from octavo.hosting.tensors import Buffer
from octavo.hosting.trace import Span
from octavo.hosting.wire import Call, Infer, Output

MAX_UNREAD_BYTES = 64 * 2**20
"""Of the results of one request that streams. A client that reads so much more slowly than they come is given up."""

Result = tuple[Output, memoryview]


@dataclass(slots=True, eq=False)
class Pending:
    """A request from its arrival to its last result.

    Attributes:
        loop: where it is waited for. message, tensors: how a process is asked.
        items: of the batch dimension. level: of priority.
        on_end: called when it has ended, at once: for whoever waits for its one result without a task.
        within: the processes that wait for it, and cannot compute it.
        asked: those that were asked whether they know its sequence.
        arrived: `time.perf_counter_ns()`. deaths: of processes that held it.
        timer: ends its waiting. trace: where it is written down, if it is.
        settled: whether it is known what comes of it. ended: whether it was told so.
    """

    loop: asyncio.AbstractEventLoop
    message: Infer | Call
    tensors: Sequence[Buffer]
    items: int
    level: int
    on_end: "Callable[[Pending], None] | None" = None
    within: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    arrived: int = field(default_factory=time.perf_counter_ns)
    deaths: int = 0
    timer: asyncio.TimerHandle | None = None
    trace: Span | None = None
    settled: bool = False
    ended: bool = False
    _error: InferenceError | None = None
    _last: Result | None = None
    _results: deque[Result] | None = None
    _unread: int = 0
    _waiter: asyncio.Future[None] | None = None

    @property
    def number(self) -> int:
        """Of the message."""
        return self.message.number

    @property
    def failed(self) -> bool:
        """Whether it has no result, when it has ended."""
        return self._error is not None

    def require_success(self) -> None:
        """Raises InferenceError: it has ended and has no result.

        Another one each time: what is raised refers to the frames that it goes through, and these to this request: a
        cycle would hold its tensors, and have their blocks lent, for long.
        """
        if self._error is not None:
            raise copy(self._error)

    def start_trace(self, trace: Span, model: str, version: str) -> None:
        """Write down what becomes of it. Args: model, version: whose it is."""
        assert isinstance(self.message, Infer)
        self.trace = trace
        trace.start(model, version, self.message.arrived, self.message.parts, self.tensors)

    def put(self, output: Output, data: memoryview) -> None:
        """A result has come, and others will."""
        if self.trace is not None:
            self.trace.result(output, data)
        self._unread += len(data)
        if self._results is None:
            self._results = deque()
        self._results.append((output, data))
        self._wake()

    @property
    def overflows(self) -> bool:
        """Whether nobody reads what comes."""
        return self._unread > MAX_UNREAD_BYTES

    def settle(self, last: Result | None = None, error: InferenceError | None = None) -> None:
        """It is known that no result follows but this one, or why."""
        self.settled = True
        if error is not None:
            forget_frames(error)
        self._last, self._error = last, error
        if self.timer is not None:
            self.timer.cancel()
        if self.trace is not None:
            if last is not None:
                self.trace.result(*last)
            else:  # what says that there is no other, or why, is a response, too
                self.trace.respond()
            self.trace.end()

    def end(self) -> None:
        """Tell what was settled."""
        self.ended = True
        on_end, self.on_end = self.on_end, None  # or a result would be held by a cycle, and its block lent, for long
        if on_end is not None:
            on_end(self)
        self._wake()

    def only(self) -> Result:
        """The one result, when it has ended. Raises InferenceError: it failed, or the model streams."""
        self.require_success()
        if self._last is None or self._results:
            raise InferenceError("the model streams: a request has any number of results", Code.INVALID_ARGUMENT)
        return self._last

    async def wait(self) -> None:
        """Until it has ended."""
        while not self.ended:
            await self._change()

    async def next(self) -> Result | None:
        """The next result; None after the last one. Raises InferenceError: there is none, because it failed."""
        while not self._results:
            if self.ended:
                self.require_success()
                last, self._last = self._last, None
                return last
            await self._change()
        result = self._results.popleft()
        self._unread -= len(result[1])
        return result

    async def _change(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
