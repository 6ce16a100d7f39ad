"""ModelStreamInfer: many requests on one call, and many results of one."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from tests.server.conftest import eventually
from tests.server.grpc.serving import SAMPLES, Served
from tests.server.grpc.test_infer import FP32, RAW, described, request, tensor
from tests.server.inference.fake import fake

ONE = np.array([7], np.int32)
COUNT = described("IN", "INT32", [1])


class Answers:
    """What comes on a stream, in its order."""

    def __init__(self) -> None:
        self._found: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._found.put((result, error))

    def next(self) -> Any:
        result, error = self._found.get(timeout=10)
        return error if result is None else result


@pytest.fixture
def streaming(served: Served) -> Iterator[tuple[client.InferenceServerClient, Answers]]:
    answers = Answers()
    with client.InferenceServerClient(served.address) as own:
        own.start_stream(answers)
        yield own, answers
        own.stop_stream()


def final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def test_answers_come_in_the_order_of_their_requests(streaming: tuple[Any, Answers], served: Served) -> None:
    """Though a later one is computed first."""
    own, answers = streaming
    model = fake(served.models["FP64"])
    model.hold, model.seen = asyncio.Event(), None
    own.async_stream_infer("FP64", [tensor("IN", SAMPLES[Datatype.FP64], "FP64")], request_id="slow")
    eventually(lambda: model.seen is not None)
    for number in range(3):
        own.async_stream_infer("FP32", [tensor("IN", SAMPLES[Datatype.FP32], "FP32")], request_id=str(number))
    served.do(model.hold.set)
    results = [answers.next() for _ in range(4)]
    model.hold = None
    assert [each.get_response().id for each in results] == ["slow", "0", "1", "2"]
    assert all(map(final, results))


def test_all_results_of_one_request(streaming: tuple[Any, Answers]) -> None:
    """And their end, if that is wanted."""
    own, answers = streaming
    own.async_stream_infer("count", [tensor("IN", ONE, "INT32")], request_id="a", enable_empty_final_response=True)
    results = [answers.next() for _ in range(4)]
    assert [each.as_numpy("OUT").tolist() for each in results[:3]] == [[7]] * 3
    assert [final(each) for each in results] == [False, False, False, True]
    assert not results[3].get_response().outputs
    assert {each.get_response().id for each in results} == {"a"}
    own.async_stream_infer("count", [tensor("IN", ONE, "INT32")])
    own.async_stream_infer("INT32", [tensor("IN", ONE, "INT32")], request_id="behind")
    names = [answers.next().get_response().id for _ in range(4)]
    assert sorted(names) == ["", "", "", "behind"]


def test_an_error_leaves_the_stream_open(streaming: tuple[Any, Answers], served: Served) -> None:
    own, answers = streaming
    own.async_stream_infer("nope", [tensor("IN", ONE, "INT32")], request_id="b")
    error = answers.next()
    assert isinstance(error, InferenceServerException)
    assert "Request for unknown model: 'nope' is not found" in str(error)
    model = fake(served.models["count"])
    model.error = InferenceError("it broke")
    own.async_stream_infer("count", [tensor("IN", ONE, "INT32")])
    found = [answers.next() for _ in range(4)]
    model.error = None
    assert [isinstance(each, InferenceServerException) for each in found] == [False, False, False, True]
    own.async_stream_infer("INT32", [tensor("IN", ONE, "INT32")])
    assert answers.next().as_numpy("OUT").tolist() == [7]


def test_bad_requests_of_a_stream_fail_alone(channel: grpc.Channel) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    bad = [request("FP32", FP32, id="none"), request("FP32", FP32, raw=(RAW, RAW), id="two")]
    answers = list(stub.ModelStreamInfer(iter([*bad, request("FP32", FP32, raw=(RAW,), id="good")]), timeout=20))
    assert [bool(each.error_message) for each in answers] == [True, True, False]
    assert answers[2].infer_response.raw_output_contents == [RAW]


def test_more_requests_than_are_computed_at_once(served: Served, channel: grpc.Channel) -> None:
    """The client has to wait, and loses none; what they took of the server's memory is given back."""
    free = served.server.tensor_bodies._free
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    wide, raw = described("IN", "FP32", [1, 10_000]), bytes(40_000)
    asked = [request("FP32", wide, raw=(raw,), id=str(number)) for number in range(400)]
    answers = list(stub.ModelStreamInfer(iter(asked), timeout=60))
    assert [each.infer_response.id for each in answers] == [each.id for each in asked]
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("FP32", wide, raw=(raw, raw)))
    eventually(lambda: served.server.tensor_bodies._free == free)


def test_a_cancelled_call_cancels_its_request(served: Served, channel: grpc.Channel) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    model = fake(served.models["FP64"])
    model.hold, model.seen, before = asyncio.Event(), None, model.cancelled
    message = request("FP64", described("IN", "FP64", [1]), raw=(bytes(8),))
    unary = stub.ModelInfer.future(message)
    eventually(lambda: model.seen is not None)
    unary.cancel()
    eventually(lambda: model.cancelled == before + 1)
    held, model.seen = threading.Event(), None
    stream = stub.ModelStreamInfer(iter_held(message, held))
    eventually(lambda: model.seen is not None)
    stream.cancel()
    held.set()
    eventually(lambda: model.cancelled == before + 2)
    with pytest.raises(grpc.RpcError) as late:
        stub.ModelInfer(message, timeout=0.05)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: model.cancelled == before + 3)
    model.hold = None
    assert not served.server.in_flight._work


def iter_held(message: Any, held: threading.Event) -> Iterator[Any]:
    """A client that has more to say, later."""
    yield message
    held.wait(10)


def test_the_asynchronous_client(served: Served) -> None:
    async def ask() -> list[Any]:
        async def requests() -> Any:
            for number in range(3):
                yield {"model_name": "INT32", "inputs": [tensor("IN", ONE, "INT32")], "request_id": str(number)}

        async with aio.InferenceServerClient(served.address) as own:
            one = await own.infer("INT32", [tensor("IN", ONE, "INT32")])
            many = [result async for result, _ in own.stream_infer(requests())]
            return [one, *many]

    assert [each.as_numpy("OUT").tolist() for each in asyncio.run(ask())] == [[7]] * 4


def test_messages_are_the_ones_of_tritons_client() -> None:
    """Both can be in one process, though they describe the same messages."""
    assert service_pb2.ModelInferRequest.DESCRIPTOR.full_name == "inference.ModelInferRequest"
