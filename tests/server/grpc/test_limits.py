"""Who may call, how much they may send, and how it ends when the server does."""

import asyncio
import gzip
import logging
import random
import struct

import grpc
import hpack
import pytest
import tritonclient.grpc as client
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from octavo.hosting.datatypes import Datatype
from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode
from octavo.server.keys import ApiKey, PriorityRange
from tests.server.conftest import eventually
from tests.server.grpc.serving import SAMPLES, Served, models, serving
from tests.server.grpc.test_infer import FP32, RAW, request, tensor
from tests.server.http2.raw import CALL, NOTHING, RawClient
from tests.server.inference.fake import fake

INPUTS = [tensor("IN", SAMPLES[Datatype.FP32], "FP32")]


def test_keys() -> None:
    with serving(*models(), api_key=("secret",)) as served, served.client() as own:
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert own.infer("FP32", INPUTS, headers=headers).as_numpy("OUT") is not None
        for wrong in (None, {"authorization": "Bearer other"}, {"x-api-key": ""}):
            with pytest.raises(InferenceServerException, match="Incorrect API key") as refusal:
                own.infer("FP32", INPUTS, headers=wrong)
            assert refusal.value.status() == "StatusCode.UNAUTHENTICATED"
        with grpc.insecure_channel(served.address) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
            with pytest.raises(grpc.RpcError) as unknown:
                channel.unary_unary("/no.such/Method")(b"", timeout=20)
            assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_priorities_that_a_key_may_ask_for() -> None:
    keys = (ApiKey(key="low", priorities=PriorityRange(5, 9)),)
    with serving(*models(), keys=keys) as served, served.client() as own:
        with pytest.raises(InferenceServerException, match="must be from 5 to 9 for this key"):
            own.infer("FP32", INPUTS, headers={"x-api-key": "low"}, priority=1)
        own.infer("FP32", INPUTS, headers={"x-api-key": "low"})
        seen = fake(served.models["FP32"]).seen
        assert seen is not None
        assert seen.priority == 5


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_requests_that_are_too_long(compression: str | None) -> None:
    """However they are sent; the connection goes on."""
    long = tensor("IN", SAMPLES[Datatype.FP32].ravel()[:1].repeat(20_000), "FP32")
    with serving(*models(), max_tensor_body_bytes=50_000) as served, served.client() as own:
        with pytest.raises(InferenceServerException, match="more than the 50000") as refusal:
            own.infer("FP32", [long], compression_algorithm=compression)
        assert refusal.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert own.infer("FP32", INPUTS).as_numpy("OUT") is not None


def test_a_request_that_stops_half_way() -> None:
    with serving(*models(), request_body_timeout=0.1) as served, RawClient(served.address) as raw:
        raw.head(1)
        raw.data(1, NOTHING[:3], flags=0)
        answer = raw.answer()
        assert answer["grpc-status"] == str(grpc.StatusCode.CANCELLED.value[0])
        assert "did not come in time" in answer["grpc-message"]


def test_a_connection_that_says_nothing() -> None:
    with serving(*models(), request_head_timeout=0.1) as served, RawClient(served.address, b"PRI") as raw:
        while raw.next() is not None:
            pass


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "application/json"}, "415"),
        ({"grpc-timeout": "soon"}, "3"),
        ({"grpc-encoding": "br"}, "12"),
    ],
)
def test_heads_that_are_no_calls(served: Served, fields: dict[str, str], status: str) -> None:
    with RawClient(served.address) as raw:
        raw.head(1, fields=tuple((dict(CALL) | fields).items()))
        answer = raw.answer()
        assert answer.get("grpc-status", answer[":status"]) == status


@pytest.mark.parametrize("body", [b"", NOTHING * 2, b"\1" + NOTHING[1:], b"\0\0\0\0\4abc"])
def test_bodies_that_are_no_message(served: Served, body: bytes) -> None:
    with RawClient(served.address) as raw:
        raw.head(1)
        raw.data(1, body)
        assert raw.answer()["grpc-status"] in ("3", "13")


def test_the_log(served: Served, triton: client.InferenceServerClient, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each call, but not for probes."""
    with caplog.at_level(logging.INFO, "octavo.access"):
        triton.infer("FP32", INPUTS, headers={"x-request-id": "mine"})
        with pytest.raises(InferenceServerException):
            triton.infer("nope", INPUTS, headers={"x-request-id": "a b"})
        with grpc.insecure_channel(served.address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    good, bad = caplog.messages
    assert good.startswith("gRPC /inference.GRPCInferenceService/ModelInfer OK ")
    assert good.endswith(" ms, 40 bytes to and 44 bytes from FP32, request mine")
    assert "ModelInfer NOT_FOUND" in bad
    assert bad.endswith(": Request for unknown model: 'nope' is not found")


def test_a_connection_that_is_too_old() -> None:
    """It takes no more calls, and ends when those that it has do; or at once, if it has none, or there is no grace."""
    with serving(*models(), grpc_max_connection_age=1) as served, RawClient(served.address) as raw:
        held = fake(served.models["FP32"])
        served.do(lambda: setattr(held, "hold", asyncio.Event()))
        raw.head(1, fields=(*CALL[:2], (":path", "/inference.GRPCInferenceService/ModelInfer"), *CALL[3:]))
        asked = request("FP32", FP32, raw=(RAW,)).SerializeToString()
        raw.data(1, struct.pack(">?I", False, len(asked)) + asked)
        assert raw.until(frames.GOAWAY).payload[:8] == struct.pack(">II", 1, ErrorCode.NO_ERROR)
        assert held.hold is not None
        served.do(held.hold.set)
        assert raw.answer()["grpc-status"] == "0"
        while raw.next() is not None:
            pass
    ages = {"grpc_max_connection_age": 1, "grpc_max_connection_age_grace": 0}
    with serving(*models(), **ages) as served, RawClient(served.address) as raw:
        raw.head(1, fields=(*CALL[:2], (":path", "/inference.GRPCInferenceService/ModelStreamInfer"), *CALL[3:]))
        while raw.next() is not None:
            pass


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_calls_that_end_where_they_begin(served: Served, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Before what is to be done for them has begun, though it is accounted for."""
    free = served.server.tensor_bodies._free
    fields = (*CALL[:2], (":path", f"/inference.GRPCInferenceService/{method}"), ("grpc-encoding", "gzip"), *CALL[3:])
    packed = gzip.compress(random.Random(1).randbytes(20_000))
    body = frames.frame(frames.DATA, frames.END_STREAM, 1, struct.pack(">?I", True, len(packed)) + packed)
    with caplog.at_level(logging.INFO, "octavo.access"), RawClient(served.address) as raw:
        block = hpack.Encoder().encode(fields)
        raw.send(
            frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
            + body
            + frames.rst_stream(1, ErrorCode.CANCEL)
            + frames.frame(frames.PING, 0, 0, bytes(8))
        )
        raw.until(frames.PING)
        eventually(lambda: served.server.tensor_bodies._free == free and not served.server.in_flight._work)
    [line] = caplog.messages
    assert f"{method} CANCELLED " in line
