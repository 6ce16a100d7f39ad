"""Requests that come all at once are begun a few at a time: streams and probes have their turn in between."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

WHOLE = 8
"""What one turn of the event loop has room for: a request that takes up to a millisecond to read and validate."""

BYTES_PER_SHARE = 1024
"""An inference takes one share of that, and one more for each so many bytes of its first ones."""


class Entrance:
    """Lets requests through in the order of their arrival.

    Args:
        per_turn: shares of a turn of the event loop; no request may need more.
    """

    def __init__(self, per_turn: int = WHOLE) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()

    def try_enter(self, size: int = WHOLE) -> bool:
        """Whether a request of this size may begin at once."""
        if self._waiting or self._passed + size > self._per_turn:
            return False
        if self._passed == 0:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()  # which is a call of the system
            self._loop.call_soon(self._next_turn, self._loop)
        self._passed += size
        return True

    def call_in_turn(self, begin: Callable[[], None], size: int = WHOLE) -> None:
        """Call this when the request may begin, after those that wait already. For one that `try_enter` refused."""
        self._waiting.append((begin, size))

    async def enter(self) -> None:
        """Returns when a request may begin."""
        if self.try_enter():
            return
        turn = asyncio.get_running_loop().create_future()
        self.call_in_turn(partial(_wake, turn))
        await turn

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = 0
        if self._waiting:
            loop.call_soon(self._next_turn, loop)
        while self._waiting and self._passed + self._waiting[0][1] <= self._per_turn:
            begin, size = self._waiting.popleft()
            self._passed += size
            begin()


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # or the request was cancelled meanwhile
        turn.set_result(None)
