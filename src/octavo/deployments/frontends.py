"""What each frontend knows alone, and another one wants to know."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from octavo.worker.control import NOTHING, raw
from octavo.worker.supervisor import Supervisor

log = logging.getLogger("octavo.server")

PATIENCE_SECONDS = 5.0
"""For a frontend to say something."""


class Frontends:
    """Those of a server, by the names of their workers."""

    def __init__(self, supervisor: Supervisor, names: Sequence[str]) -> None:
        self._supervisor = supervisor
        self._names = names

    async def ask_others(self, frontend: str, what: str) -> list[msgspec.Raw]:
        """What all but one say that are there."""
        others = [name for name in self._names if name != frontend]
        answers = await asyncio.gather(*(self._ask(name, what) for name in others))
        return [each for each in answers if each != NOTHING]

    async def _ask(self, name: str, what: str) -> msgspec.Raw:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._supervisor.synced(name, raw(what))
        except TimeoutError:
            log.warning("%s has not said its %s within %g s: they are not counted", name, what, PATIENCE_SECONDS)
            return NOTHING
