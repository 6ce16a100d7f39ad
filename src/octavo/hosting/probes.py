"""Models whose code says whether they are ready: a frontend asks, when it is asked."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Protocol

from octavo.hosting.wire import Probe, Probed, Request

SECONDS = 5.0
"""For an answer; a model that gives none is not ready."""


class Probable(Protocol):
    """A process of a model."""

    def tell(self, message: Request) -> None:
        """Send it something, if it is there."""
        ...


class Probes:
    """What was asked of the processes of one model."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bool]] = {}

    async def all_ready(self, processes: Iterable[Probable]) -> bool:
        """Whether all of them say that they are."""
        loop = asyncio.get_running_loop()
        asked: dict[int, asyncio.Future[bool]] = {}
        for each in processes:
            number = next(self._numbers)
            self._waiting[number] = asked[number] = loop.create_future()
            each.tell(Probe(number))
        try:
            async with asyncio.timeout(SECONDS):
                return all(await asyncio.gather(*asked.values()))
        except TimeoutError:
            return False
        finally:
            for number in asked:
                self._waiting.pop(number, None)

    def on_probed(self, message: Probed) -> None:
        """One has answered."""
        future = self._waiting.get(message.call)
        if future is not None and not future.done():
            future.set_result(message.ready)
