"""The two ends of a channel, in one process: sessions, leases, defects, shortages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import zmq
import zmq.asyncio

from octavo.worker.channel import Channel
from octavo.worker.endpoint import Endpoint, Event, Joined, Left, Message
from tests.worker.engines import run


class Frontend:
    """Notes what a channel tells it. A message that it cannot handle is b"defect"."""

    def __init__(self, address: str, lease_seconds: float = 60.0) -> None:
        self.told: list[object] = []
        self.channel = Channel(address, self, lease_seconds=lease_seconds)

    def on_open(self) -> None:
        self.told.append("open")

    def on_expired(self) -> None:
        self.told.append("expired")

    def on_defect(self) -> None:
        self.told.append("defect")

    def on_message(self, data: memoryview) -> None:
        if data == b"defect":
            raise ZeroDivisionError
        self.told.append(bytes(data))


class Worker:
    """An endpoint whose events are noted."""

    def __init__(self, address: str) -> None:
        self.endpoint = Endpoint(address)
        self.events: list[Event] = []

    async def hear(self, count: int) -> list[Event]:
        """The next so many events."""
        async with asyncio.timeout(20):
            while len(self.events) < count:
                self.events += self.endpoint.receive(wait=False)
                await asyncio.sleep(0.005)
        heard, self.events = self.events[:count], self.events[count:]
        return heard


@asynccontextmanager
async def connected(count: int = 1) -> AsyncIterator[tuple[Worker, list[Frontend]]]:
    with TemporaryDirectory(dir="/tmp") as folder:
        address = f"ipc://{Path(folder) / 'socket'}"
        worker = Worker(address)
        frontends = [Frontend(address) for _ in range(count)]
        try:
            yield worker, frontends
        finally:
            for frontend in frontends:
                frontend.channel.close()
            worker.endpoint.close()


async def told(frontend: Frontend, *expected: object) -> None:
    """Wait until a frontend has been told this and nothing else."""
    async with asyncio.timeout(20):
        while len(frontend.told) < len(expected):
            await asyncio.sleep(0.005)
    assert frontend.told == list(expected)


def test_messages_go_both_ways_in_order() -> None:
    async def test() -> None:
        async with connected(2) as (worker, frontends):
            joined = await worker.hear(2)
            assert all(isinstance(event, Joined) for event in joined)
            for frontend in frontends:
                for number in range(100):
                    frontend.channel.send(b"%d" % number)
            by_frontend: dict[bytes, list[bytes]] = {}
            for event in await worker.hear(200):
                assert isinstance(event, Message)
                by_frontend.setdefault(event.frontend, []).append(event.data)
            assert list(by_frontend.values()) == [[b"%d" % number for number in range(100)]] * 2
            assert sorted(worker.endpoint.frontends) == sorted(by_frontend)
            for identity in by_frontend:
                worker.endpoint.send(identity, b"hello")
            for frontend in frontends:
                await told(frontend, "open", b"hello")

    run(test)


def test_a_frontend_that_was_silent_for_too_long_is_told_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("octavo.worker.endpoint.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def test() -> None:
        async with connected() as (worker, [frontend]):
            [joined] = await worker.hear(1)
            clock.now += 59.0
            frontend.channel.send(b"still here")
            assert await worker.hear(1) == [Message(joined.frontend, b"still here")]
            clock.now += 59.0  # since what was sent last
            assert worker.endpoint.receive(wait=False) == []
            worker.endpoint.send(joined.frontend, b"for the first session")
            clock.now += 2.0
            assert await worker.hear(1) == [Left(joined.frontend)]
            assert worker.endpoint.frontends == []
            worker.endpoint.send(joined.frontend, b"for nobody")
            frontend.channel.send(b"of a session that has ended")
            assert await worker.hear(1) == [joined]
            await told(frontend, "open", b"for the first session", "expired", "open")
            frontend.channel.send(b"of the second")
            assert await worker.hear(1) == [Message(joined.frontend, b"of the second")]

    run(test)


def test_a_worker_that_was_held_up_forgets_nobody_who_has_sent_something(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("octavo.worker.endpoint.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def test() -> None:
        async with connected() as (worker, [frontend]):
            [joined] = await worker.hear(1)
            frontend.channel.send(b"waits")
            poller = zmq.asyncio.Poller()
            poller.register(worker.endpoint._socket, zmq.POLLIN)
            await poller.poll()  # it has arrived
            clock.now += 3600.0
            assert await worker.hear(1) == [Message(joined.frontend, b"waits")]
            assert worker.endpoint.frontends == [joined.frontend]

    run(test)


def test_after_a_message_that_cannot_be_handled_all_begins_anew() -> None:
    async def test() -> None:
        async with connected() as (worker, [frontend]):
            [joined] = await worker.hear(1)
            for data in (b"good", b"defect", b"lost with the session"):
                worker.endpoint.send(joined.frontend, data)
            assert await worker.hear(2) == [Left(joined.frontend), joined]
            worker.endpoint.send(joined.frontend, b"good again")
            await told(frontend, "open", b"good", "defect", "open", b"good again")

    run(test)


def test_a_channel_opens_when_descriptors_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.worker.channel.RETRY_SECONDS", 0.01)
    socket = zmq.asyncio.Context.socket
    tries = 0

    def fail_at_first(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
        nonlocal tries
        tries += 1
        if tries <= 5:
            raise zmq.ZMQError(zmq.EMFILE if hasattr(zmq, "EMFILE") else 24)
        return socket(context, kind)

    monkeypatch.setattr(zmq.asyncio.Context, "socket", fail_at_first)

    async def test() -> None:
        async with connected() as (worker, [frontend]):
            assert not frontend.channel.is_open
            frontend.channel.send(b"too early")
            await worker.hear(1)
            await told(frontend, *["defect"] * 5, "open")

    run(test)
