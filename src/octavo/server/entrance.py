"""Requests that come all at once are begun a few at a time: streams and probes have their turn in between."""

import asyncio
from collections import deque

REQUESTS_PER_TURN = 2
"""Begun in one turn of the event loop; to read and validate one takes up to a millisecond."""


class Entrance:
    """Lets requests through in the order of their arrival."""

    def __init__(self, per_turn: int = REQUESTS_PER_TURN) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Returns when a request may begin."""
        loop = asyncio.get_running_loop()
        if self._passed < self._per_turn and not self._waiting:
            if self._passed == 0:
                loop.call_soon(self._next_turn, loop)
            self._passed += 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = 0
        while self._waiting and self._passed < self._per_turn:
            turn = self._waiting.popleft()
            if not turn.done():  # or the request was cancelled meanwhile
                turn.set_result(None)
                self._passed += 1
        if self._passed:
            loop.call_soon(self._next_turn, loop)
