"""Requests that a frontend has asked for, and what has come back so far."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Call, Infer, Output

MAX_UNREAD_BYTES = 64 * 2**20
"""Of the results of one request that streams. A client that reads so much more slowly than they come is given up."""


@dataclass(slots=True, eq=False)
class Pending:
    """A request from its arrival to its last result.

    Attributes:
        loop: where it is waited for. message, tensors: how a process is asked.
        items: of the batch dimension. level: of priority.
        arrived: `time.perf_counter_ns()`. deaths: of processes that held it.
        timer: ends its waiting. settled: whether it is known what comes of it. ended: whether it was told so.
    """

    loop: asyncio.AbstractEventLoop
    message: Infer | Call
    tensors: Sequence[Buffer]
    items: int
    level: int
    arrived: int = field(default_factory=time.perf_counter_ns)
    deaths: int = 0
    timer: asyncio.TimerHandle | None = None
    settled: bool = False
    ended: bool = False
    _error: InferenceError | None = None
    _results: deque[tuple[Output, memoryview]] = field(default_factory=deque)
    _unread: int = 0
    _waiter: asyncio.Future[None] | None = None

    @property
    def number(self) -> int:
        """Of the message."""
        return self.message.number

    def put(self, output: Output, data: memoryview) -> None:
        """A result has come."""
        self._unread += len(data)
        self._results.append((output, data))
        self._wake()

    @property
    def overflows(self) -> bool:
        """Whether nobody reads what comes."""
        return self._unread > MAX_UNREAD_BYTES

    def end(self, error: InferenceError | None = None) -> None:
        """No result follows; those that are there are read first."""
        self.ended = True
        self._error = error
        if self.timer is not None:
            self.timer.cancel()
        self._wake()

    async def next(self) -> tuple[Output, memoryview] | None:
        """The next result; None after the last one. Raises InferenceError: there is none, because it failed."""
        while not self._results:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return None
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output, data = self._results.popleft()
        self._unread -= len(data)
        return output, data

    async def only(self) -> tuple[Output, memoryview]:
        """The one result. Raises InferenceError: it failed, or the model streams."""
        result = await self.next()
        if result is None or not result[0].last:
            raise InferenceError("the model streams: a request has any number of results", Code.INVALID_ARGUMENT)
        return result

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
