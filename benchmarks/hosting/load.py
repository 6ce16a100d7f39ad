"""What clients have in common: each sends its request again as soon as the answer is there."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import cast

WARM_UP = 0.5
"""Seconds before answers count."""

PATIENCE = 30.0
"""Seconds that the last answers may take."""

Look = Callable[[bytes], float]
"""Reads a figure out of the body of an answer."""


class LoadError(Exception):
    """The server did not answer as it should; the message is one line."""


@dataclass
class Answers:
    """The answers that counted.

    Attributes:
        seconds: from the end of the warm-up to the last of them. latencies: of each, in seconds.
        seen: what was read out of each, if anything. body: of the last.
        all: how many came, the warm-up's as well. client_cpu, server_cpu: seconds that were computed for these.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    body: bytes = b""
    all: int = 0
    client_cpu: float = 0.0
    server_cpu: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        """Seconds that so many per cent of the answers took at most."""
        return quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


class Clock:
    """Says which answers count: those that come between the end of the warm-up and `seconds` later."""

    def __init__(self, seconds: float, look: Look | None = None) -> None:
        self.answers = Answers()
        self.begins = time.perf_counter() + WARM_UP
        self._ends = self.begins + seconds
        self._look = look

    def answered(self, sent: float, body: Callable[[], bytes]) -> float | None:
        """Note an answer to what was sent then; returns the time now, or None when it is over."""
        now = time.perf_counter()
        self.answers.all += 1
        if now >= self._ends:
            self.answers.body = body()
            return None
        if now >= self.begins:
            self.answers.seconds = now - self.begins
            self.answers.latencies.append(now - sent)
            if self._look is not None:
                self.answers.seen.append(self._look(body()))
        return now


class Client(asyncio.BaseProtocol):
    """A connection on which one request after the other is answered.

    Attributes:
        ended: when the clock says so, or with a LoadError.
    """

    transport: asyncio.Transport

    def __init__(self, request: bytes, clock: Clock) -> None:
        self.request = request
        self.clock = clock
        self.sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection was closed: {exc}")

    def send(self) -> None:
        """Write the request."""
        raise NotImplementedError

    def answered(self, body: Callable[[], bytes]) -> None:
        """Note an answer, and go on."""
        now = self.clock.answered(self.sent, body)
        if now is not None:
            self.sent = now
            self.send()
        elif not self.ended.done():
            self.ended.set_result(None)
            self.transport.close()

    def fail(self, reason: str) -> None:
        """Give up."""
        if not self.ended.done():
            self.ended.set_exception(LoadError(reason))
            self.transport.close()


async def load(port: int, client: Callable[[bytes, Clock], Client], requests: Sequence[bytes], clock: Clock) -> Answers:
    """Send requests, each again and again from a client of its own, until the clock ends them. Raises LoadError."""
    loop = asyncio.get_running_loop()
    cpu = time.process_time()
    made = [loop.create_connection(partial(client, each, clock), "127.0.0.1", port) for each in requests]
    try:
        async with asyncio.timeout_at(loop.time() + clock.begins - time.perf_counter() + PATIENCE):
            await asyncio.gather(*[each.ended for _, each in await asyncio.gather(*made)])
    except (OSError, TimeoutError) as error:
        raise LoadError(f"no answer: {error or 'it takes too long'}") from None
    clock.answers.client_cpu = time.process_time() - cpu
    if len(clock.answers.latencies) < 2:
        raise LoadError("no two answers came in time")
    return clock.answers
