"""How much is in an engine at once: a batch of any size passes through its bounded queue without being refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Window:
    """Lets requests in by turns while their choices and prompt tokens fit.

    Args:
        choices: sequences that run or wait at once. tokens: of their prompts; a single request may have more.
    """

    def __init__(self, choices: int, tokens: int) -> None:
        self._choices = self._free_choices = choices
        self._tokens = self._free_tokens = tokens
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, choices: int, tokens: int) -> AsyncIterator[None]:
        """Wait for room, in the order of arrival, and take it for the time of the context."""
        choices, tokens = min(choices, self._choices), min(tokens, self._tokens)
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: choices <= self._free_choices and tokens <= self._free_tokens)
            self._free_choices -= choices
            self._free_tokens -= tokens
        try:
            yield
        finally:
            self._free_choices += choices
            self._free_tokens += tokens
            async with self._freed:
                self._freed.notify()
