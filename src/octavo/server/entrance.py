"""Requests that come all at once are begun a few at a time: streams and probes have their turn in between."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

REQUESTS_PER_TURN = 1
"""Begun in one turn of the event loop; to read and validate one takes up to a millisecond."""


class Entrance:
    """Lets requests through in the order of their arrival."""

    def __init__(self, per_turn: int = REQUESTS_PER_TURN) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def try_enter(self) -> bool:
        """Whether a request may begin at once."""
        if self._waiting or self._passed == self._per_turn:
            return False
        if self._passed == 0:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._next_turn, loop)
        self._passed += 1
        return True

    def call_in_turn(self, begin: Callable[[], None]) -> None:
        """Call this when the request may begin, after those that wait already. For one that `try_enter` refused."""
        self._waiting.append(begin)

    async def enter(self) -> None:
        """Returns when a request may begin."""
        if self.try_enter():
            return
        turn = asyncio.get_running_loop().create_future()
        self.call_in_turn(partial(_wake, turn))
        await turn

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = min(self._per_turn, len(self._waiting))
        if self._passed:
            loop.call_soon(self._next_turn, loop)
        for _ in range(self._passed):
            self._waiting.popleft()()


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # or the request was cancelled meanwhile
        turn.set_result(None)
