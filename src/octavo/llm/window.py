"""How much is in an engine at once: a batch of any size passes through its bounded queue without being refused."""

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What a request takes of a window: `choices` sequences, and `tokens` of prompts."""

    choices: int
    tokens: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Window:
    """Lets requests in by turns while their choices and prompt tokens fit. Belongs to one event loop.

    Args:
        choices: sequences that run or wait at once. tokens: of their prompts; a single request may have more.
    """

    def __init__(self, choices: int, tokens: int) -> None:
        self._choices = self._free_choices = choices
        self._tokens = self._free_tokens = tokens
        self._waiting: deque[Room] = deque()

    async def enter(self, choices: int, tokens: int) -> Room:
        """Wait for room, in the order of arrival, and take it."""
        room = Room(min(choices, self._choices), min(tokens, self._tokens))
        self._waiting.append(room)
        self._grant()
        try:
            await room.granted
        except asyncio.CancelledError:
            if not room.granted.cancelled():  # it was granted in the same moment
                self.leave(room)
            else:
                self._grant()
            raise
        return room

    def leave(self, room: Room) -> None:
        """Give room back."""
        self._free_choices += room.choices
        self._free_tokens += room.tokens
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            gone = first.granted.cancelled()
            if not gone and (first.choices > self._free_choices or first.tokens > self._free_tokens):
                return
            self._waiting.popleft()
            if not gone:
                self._free_choices -= first.choices
                self._free_tokens -= first.tokens
                first.granted.set_result(None)
