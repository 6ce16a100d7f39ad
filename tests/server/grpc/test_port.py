"""The port for gRPC from its opening, when there is something to serve, to the server's end."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from tritonclient.utils import InferenceServerException

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.server.app import create_app
from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode
from octavo.server.listener import bind, bind_grpc, grpc_address_of
from octavo.server.run import HttpServer
from octavo.server.settings import ServerSettings
from tests.server.conftest import eventually
from tests.server.grpc.serving import SAMPLES, Served, models
from tests.server.grpc.test_infer import described, request, tensor
from tests.server.grpc.test_stream import Answers
from tests.server.http2.raw import CALL, RawClient
from tests.server.inference.fake import fake

SETTINGS = ServerSettings(port=0)


class Running:
    """A whole server, with HTTP, in a thread; it offers nothing at first."""

    def __init__(self) -> None:
        self.deployments = Deployments()
        listener = bind("127.0.0.1", 0)
        found = bind_grpc(SETTINGS, listen=False)
        assert found is not None
        self.address = grpc_address_of(found)
        self.http = HttpServer(SETTINGS, create_app(SETTINGS, self.deployments), listener, found)
        self.server = self.http._server
        ready = threading.Event()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self.loop.call_soon(ready.set)
            await self.http.run()

        self.thread = threading.Thread(target=lambda: uvloop.run(serve()))
        self.thread.start()
        assert ready.wait(10)

    def offer(self, *models: HostedDeployment) -> Served:
        """Have it serve something."""
        by_name = {each.name: each for each in models}
        served = Served(self.address, by_name, self.server, self.loop, asyncio.Event())
        served.do(lambda: self.deployments.offer(models))
        return served


@contextlib.contextmanager
def running() -> Iterator[Running]:
    server = Running()
    try:
        yield server
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended
            server.loop.call_soon_threadsafe(server.http.stop, 0.0)
        server.thread.join()


def connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_from_the_first_model_to_the_end_of_the_server() -> None:
    """What runs ends as if nothing had happened, streams end when they have answered, new calls are refused."""
    with running() as server:
        assert not connects(server.address)
        served = server.offer(*models())
        inputs = [tensor("IN", SAMPLES[Datatype.FP64], "FP64")]
        model, answers, found = fake(served.models["FP64"]), Answers(), list[Any]()
        model.hold = asyncio.Event()
        with served.client() as own, served.client() as late:
            own.start_stream(answers)
            own.async_stream_infer("FP64", inputs)
            own.async_infer("FP64", inputs, lambda result, error: found.append(error or result))
            eventually(lambda: len(server.server.in_flight._work) == 2)
            served.do(lambda: server.http.stop(20))
            eventually(lambda: server.server.in_flight.draining)
            with pytest.raises(InferenceServerException, match="shutting down") as refusal:
                late.infer("FP64", inputs)
            assert refusal.value.status() == "StatusCode.UNAVAILABLE"
            assert not late.is_server_ready()
            served.do(model.hold.set)
            assert answers.next().as_numpy("OUT").tolist() == SAMPLES[Datatype.FP64].tolist()
            assert "shutting down" in str(answers.next())
            eventually(lambda: bool(found))
            assert found[0].as_numpy("OUT").tolist() == SAMPLES[Datatype.FP64].tolist()
        server.thread.join(10)
        assert not connects(server.address)


def test_calls_that_cross_the_news_of_the_end() -> None:
    """A client that has not heard yet begins one more call: it is not answered, and disturbs no other."""
    message = request("FP64", described("IN", "FP64", [1]), raw=(bytes(8),)).SerializeToString()
    message = bytes((0, 0, 0, 0, len(message))) + message
    fields = (*CALL[:2], (":path", "/inference.GRPCInferenceService/ModelInfer"), *CALL[3:])
    with running() as server:
        served = server.offer(*models())
        model = fake(served.models["FP64"])
        model.hold = asyncio.Event()
        with RawClient(server.address) as client:
            client.head(1, fields=fields)
            client.data(1, message)
            eventually(lambda: model.seen is not None)
            served.do(lambda: server.http.stop(20))
            assert client.until(frames.GOAWAY).payload == bytes((0, 0, 0, 1, 0, 0, 0, 0))
            client.head(3, fields=fields)
            client.data(3, message)
            client.send(frames.rst_stream(3, ErrorCode.CANCEL))
            served.do(model.hold.set)
            assert client.answer() == {"grpc-status": "0"}
            assert client.next() is None


def test_a_second_signal_does_not_wait() -> None:
    with running() as server:
        served = server.offer(*models())
        fake(served.models["FP64"]).hold = asyncio.Event()
        with served.client() as own:
            found: list[Any] = []
            inputs = [tensor("IN", SAMPLES[Datatype.FP64], "FP64")]
            own.async_infer("FP64", inputs, lambda result, error: found.append(error))
            eventually(lambda: len(server.server.in_flight._work) == 1)
            served.do(lambda: (server.http.stop(20), server.http.stop(20)))
            eventually(lambda: bool(found))
            assert found[0].status() == "StatusCode.UNAVAILABLE"
            server.thread.join(10)


def test_the_port_that_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """One in use matters when there is something to serve; before that it is said, the louder if it was asked for."""
    with bind("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1 port {port} for gRPC: .*--grpc-port; 0 is none"):
            bind_grpc(ServerSettings(port=port - 1), listen=True)
        with caplog.at_level(logging.INFO, "octavo.server"):
            assert bind_grpc(ServerSettings(port=port - 1), listen=False) is None
            assert bind_grpc(ServerSettings(grpc_port=port), listen=False) is None
        assert [each.levelname for each in caplog.records] == ["INFO", "WARNING"]
        assert f"cannot listen on 127.0.0.1 port {port} for gRPC: Address already in use; " in caplog.text
    for none in (ServerSettings(grpc_port=0), ServerSettings(uds="/tmp/socket")):
        assert bind_grpc(none, listen=True) is None
    with pytest.raises(ConfigError, match="port 65536 for gRPC"):
        bind_grpc(ServerSettings(port=65535), listen=True)
    free = bind_grpc(ServerSettings(uds="/tmp/socket", grpc_port=port), listen=True)
    assert free is not None
    with free:
        assert grpc_address_of(free) == f"127.0.0.1:{port}"
        assert connects(grpc_address_of(free))
