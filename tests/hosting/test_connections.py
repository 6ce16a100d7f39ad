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


def test_a_process_that_was_killed_is_gone_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    transport, owner = Mock(asyncio.Transport), Mock()
    connection = Connection(owner)
    connection.connection_made(transport)
    connection.data_received(from_the_dead(Output(1)))
    assert transport.abort.called
    assert not owner.on_reply.called
    assert [(each.levelno, each.exc_info) for each in caplog.records] == [(logging.WARNING, None)]
