"""Both ends of the socket between a frontend and a model's process, when the other one is killed."""

import asyncio
import logging
import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from octavo.hosting.blocks import LEAST_BYTES
from octavo.hosting.connection import Connection
from octavo.hosting.endpoint import Endpoint
from octavo.hosting.frames import Writer
from octavo.hosting.wire import Infer, Output, Reply, Request

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all goes through the socket")


def from_the_dead(message: Request | Reply) -> bytes:
    """A frame whose sender ended before anybody opened the memory that it tells of."""
    writer = Writer()
    frame = b"".join(writer.frame(message, [bytes(LEAST_BYTES)]))
    writer.close()
    return frame


def test_a_frontend_that_was_killed_is_gone_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as frontend:
        frontend.connect(str(tmp_path / "socket"))
        frontend.send(from_the_dead(Infer(1, (), 1.5)))
        endpoint.receive(5)  # the connection
        [(_, request, _)] = endpoint.receive(5)
    assert request is None
    assert [(each.levelno, each.exc_info) for each in caplog.records] == [(logging.WARNING, None)]


@pytest.mark.parametrize("answers", [True, False])
def test_memory_is_given_back_on_both_sides_when_nothing_is_asked_for(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("blocks", "connection"):
        monkeypatch.setattr(f"octavo.hosting.{module}.SPARE_SECONDS", 0.02)

    def blocks() -> int:
        return sum("memfd:octavo" in line for line in Path("/proc/self/maps").read_text().splitlines())

    async def test() -> None:
        endpoint = Endpoint(str(tmp_path / "socket"))
        loop, owner = asyncio.get_running_loop(), Mock()
        kept: list[Request] = []

        def serve() -> None:
            for peer, request, data in endpoint.receive(0):
                assert isinstance(request, Infer)
                peer.send(Output(request.number), [bytes(data)] if answers else [])
                kept.append(request)

        loop.add_reader(endpoint.fileno(), serve)
        connection = await Connection.open(str(tmp_path / "socket"), owner)
        for number in range(4):
            connection.send(Infer(number, (), 1.5), [bytes(LEAST_BYTES)])
        async with asyncio.timeout(20):
            while owner.on_reply.call_count < 4:
                await asyncio.sleep(0.01)
            assert blocks() > before
            owner.reset_mock()  # nobody reads the answers any more
            while blocks() > before:
                await asyncio.sleep(0.01)
        assert len(kept) == 4
        loop.remove_reader(endpoint.fileno())
        connection.close()

    before = blocks()
    asyncio.run(test())


def test_a_process_that_was_killed_is_gone_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    transport, owner = Mock(asyncio.Transport), Mock()
    connection = Connection(owner)
    connection.connection_made(transport)
    connection.data_received(from_the_dead(Output(1)))
    assert transport.abort.called
    assert not owner.on_reply.called
    assert [(each.levelno, each.exc_info) for each in caplog.records] == [(logging.WARNING, None)]
