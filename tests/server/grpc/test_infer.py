"""Inference as Triton's client asks for it, and as its messages can be written without it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.server.grpc.infer_request import split
from tests.properties import examples
from tests.server.grpc.serving import SAMPLES, Served, serving
from tests.server.inference.fake import UNAVAILABLE, fake, identity

TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.25]),
    "FP64": ("fp64_contents", [1e300, -0.1]),
    "BYTES": ("bytes_contents", [b"", b"a\0b"]),
}


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> client.InferInput:
    found = client.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def request(model: str, *inputs: Any, raw: tuple[bytes, ...] = (), **fields: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **fields)


def described(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    found = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        found.contents.CopyFrom(service_pb2.InferTensorContents(**contents))
    return found


FP32 = described("IN", "FP32", [1, 2])
RAW = np.array([1.5, 2.5], np.float32).tobytes()


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> service_pb2_grpc.GRPCInferenceServiceStub:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def refused(stub: Any, message: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(message, timeout=20)
    return refusal.value


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_datatype_comes_back_as_it_went(triton: client.InferenceServerClient, datatype: Datatype) -> None:
    sent = SAMPLES[datatype]
    for shaped in (sent, sent[:, :0], sent.ravel()):
        result = triton.infer(datatype.value, [tensor("IN", shaped, datatype.value)], request_id="7")
        assert result.as_numpy("OUT").shape == shaped.shape
        if datatype is Datatype.BYTES:
            assert result.as_numpy("OUT").tolist() == shaped.tolist()
        else:
            assert result.as_numpy("OUT").tobytes() == shaped.tobytes()
        assert result.get_response().id == "7"
        assert result.get_response().model_name == datatype.value
        assert result.get_response().model_version == "1"


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_mean_the_same_as_raw_ones(stub: Any, datatype: str) -> None:
    field, values = TYPED[datatype]
    typed = stub.ModelInfer(request(datatype, described("IN", datatype, [1, 2], **{field: values})))
    raw = stub.ModelInfer(request(datatype, described("IN", datatype, [1, 2]), raw=tuple(typed.raw_output_contents)))
    assert typed == raw
    numbers = np.array([values], Datatype(datatype).dtype)
    if datatype != "BYTES":
        assert typed.raw_output_contents == [numbers.tobytes()]
    else:
        assert typed.raw_output_contents == [b"\0\0\0\0\3\0\0\0a\0b"]


def test_outputs_that_are_wanted_come_alone(triton: client.InferenceServerClient) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = [tensor("A", sent, "FP32")]
    both = triton.infer("pair", inputs).get_response()
    assert [each.name for each in both.outputs] == ["SUM", "SAME"]
    one = triton.infer("pair", inputs, outputs=[client.InferRequestedOutput("SAME")])
    assert [each.name for each in one.get_response().outputs] == ["SAME"]
    assert one.as_numpy("SAME").tolist() == sent.tolist()


def test_classes_of_an_output(triton: client.InferenceServerClient) -> None:
    sent = np.array([[1, 5, 3], [9, 7, 8]], np.float32)
    wanted = [client.InferRequestedOutput("SAME", class_count=2)]
    best = triton.infer("pair", [tensor("A", sent, "FP32")], outputs=wanted).as_numpy("SAME")
    assert [[each.decode().split(":")[1] for each in row] for row in best.tolist()] == [["1", "2"], ["0", "2"]]


def test_large_tensors(triton: client.InferenceServerClient) -> None:
    """More than the windows of either end, both ways."""
    sent = np.arange(3 * 2**20, dtype=np.float32).reshape(3, 2**20)
    assert np.array_equal(triton.infer("FP32", [tensor("IN", sent, "FP32")]).as_numpy("OUT"), sent)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(triton: client.InferenceServerClient, algorithm: str) -> None:
    sent = np.zeros((1, 10_000), np.float32)
    result = triton.infer("FP32", [tensor("IN", sent, "FP32")], compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("OUT"), sent)


def test_options_reach_the_model(served: Served, triton: client.InferenceServerClient) -> None:
    triton.infer("FP32", [tensor("IN", SAMPLES[Datatype.FP32], "FP32")], priority=3, timeout=2_000_000)
    seen = fake(served.models["FP32"]).seen
    assert seen is not None
    assert (seen.priority, seen.timeout) == (3, 2.0)
    triton.infer("FP32", [tensor("IN", SAMPLES[Datatype.FP32], "FP32")], client_timeout=30)
    seen = fake(served.models["FP32"]).seen
    assert seen is not None
    assert 1 < seen.timeout < 31  # which is sent rounded up


def test_thirty_two_clients_at_once(served: Served) -> None:
    def ask(number: int) -> bool:
        sent = np.full((1, number + 1), number, np.float32)
        with client.InferenceServerClient(served.address) as own:
            found = [own.infer("FP32", [tensor("IN", sent, "FP32")], request_id=str(number)) for _ in range(4)]
        return all(np.array_equal(each.as_numpy("OUT"), sent) for each in found)

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(ask, range(32)))


def test_what_is_remembered_of_a_request_is_only_what_it_says(stub: Any) -> None:
    """Requests that differ in nothing but their names and bytes, also in how many of these there are."""
    text = described("IN", "BYTES", [1])
    pair = described("A", "FP32", [1, 3]), described("B", "INT32", [1, 2])
    a, b = bytes(12), bytes(8)
    for again in range(2):
        for name, sent in (("", b"x"), ("first", b"longer"), ("größer", b"")):
            found = stub.ModelInfer(
                request("BYTES", text, raw=(len(sent).to_bytes(4, "little") + sent,), id=name), timeout=20
            )
            assert (found.id, found.raw_output_contents[0][4:]) == (name, sent)
        assert "Expected 8, got 12" in str(refused(stub, request("FP32", FP32, raw=(RAW + bytes(4),))).details())
        assert stub.ModelInfer(request("FP32", FP32, raw=(RAW,)), timeout=20).raw_output_contents == [RAW]
        answer = stub.ModelInfer(request("pair", *pair, raw=(a, b), id=str(again)), timeout=20)
        assert [each.name for each in answer.outputs] == ["SUM", "SAME"]
        assert (answer.id, list(answer.raw_output_contents)) == (str(again), [bytes(4), a])
        assert "Expected 12, got 8" in str(refused(stub, request("pair", *pair, raw=(b, a))).details())
        assert "has 3 entries" in str(refused(stub, request("pair", *pair, raw=(a, b, b))).details())


def test_a_model_that_takes_the_place_of_another() -> None:
    """What is remembered of requests for one is not taken for the other."""
    old = identity("it", {"IN": (Datatype.FP32, None)})
    other = identity("it", {"IN": (Datatype.INT32, None)})
    new = replace(identity("it", {"IN": (Datatype.FP32, (2,))}), version="2")
    with serving(old) as served, grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        right = request("it", described("IN", "FP32", [2]), raw=(RAW,))
        wrong = request("it", described("IN", "FP32", [1, 2]), raw=(RAW,))
        for _ in range(2):
            assert stub.ModelInfer(wrong, timeout=20).raw_output_contents == [RAW]
            assert stub.ModelInfer(right, timeout=20).model_version == "1"
        served.do(lambda: served.server.deployments.offer([new]))
        assert stub.ModelInfer(right, timeout=20).model_version == "2"
        assert "unexpected shape" in str(refused(stub, wrong).details())
        served.do(lambda: served.server.deployments.offer([other]))
        assert "expects 'INT32'" in str(refused(stub, right).details())


BAD = [
    ("mixed", [described("IN", "FP32", [1, 1], fp32_contents=[1.0])], (RAW,), "contents field must not be specified"),
    ("none", [FP32], (), "unable to find data for input tensor 'IN' for model 'FP32' in request."),
    ("more", [FP32], (RAW, RAW), "raw_input_contents has 2 entries"),
    ("short", [FP32], (RAW[:-1],), "Expected 8, got 7"),
    ("long", [FP32], (RAW + b"\0",), "Expected 8, got 9"),
    ("fewer values", [described("IN", "FP32", [1, 2], fp32_contents=[1.0])], (), "Expected 8, got 4"),
    ("negative", [described("IN", "FP32", [-1, 2])], (RAW,), "invalid dimension in shape [-1,2]"),
    ("huge", [described("IN", "FP32", [2**62, 2**62])], (RAW,), "exceeds maximum size"),
    ("many", [described("IN", "FP32", [1] * 40)], (RAW,), "40 dimensions"),
    ("other type", [described("IN", "INT32", [1, 2])], (RAW,), "expects 'FP32'"),
    ("no type", [described("IN", "FP31", [1, 2])], (RAW,), "data-type is 'FP31'"),
    ("other name", [described("BAD", "FP32", [1, 2])], (RAW,), "unexpected inference input 'BAD' for model 'FP32'"),
    ("twice", [FP32, FP32], (RAW, RAW), "input 'IN' already exists"),
    ("nothing", [], (), "missing required input(s) ['IN']"),
    ("wrong field", [described("IN", "FP32", [1, 2], int_contents=[1, 2])], (), "of type 'INT32', expected datatype"),
    ("two fields", [described("IN", "FP32", [1], int_contents=[1], fp32_contents=[1])], (), "already supplied"),
]


@pytest.mark.parametrize(("inputs", "raw", "wording"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_bad_input_is_the_clients_fault(stub: Any, inputs: list[Any], raw: tuple[bytes, ...], wording: str) -> None:
    refusal = refused(stub, request("FP32", *inputs, raw=raw))
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert wording in refusal.details()


def test_values_that_do_not_fit_are_refused(stub: Any) -> None:
    refusal = refused(stub, request("INT8", described("IN", "INT8", [1], int_contents=[200])))
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "do not fit INT8" in refusal.details()


@pytest.mark.parametrize(
    ("model", "version", "code", "wording"),
    [
        ("nope", "", grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        ("FP32", "7", grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'FP32' version 7 is not found"),
        ("FP32", "new", grpc.StatusCode.INVALID_ARGUMENT, "version should be an integral value > 0"),
        ("count", "", grpc.StatusCode.UNIMPLEMENTED, "decoupled transaction policy"),
        ("ü" * 2000, "", grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'üü"),
    ],
)
def test_unknown_models_and_versions(stub: Any, model: str, version: str, code: grpc.StatusCode, wording: str) -> None:
    refusal = refused(stub, request(model, FP32, raw=(RAW,), model_version=version))
    assert refusal.code() is code
    assert wording in refusal.details()


@pytest.mark.parametrize(
    ("name", "value", "wording"),
    [
        ("triton_x", {"int64_param": 1}, "reserved for Triton usage"),
        ("priority", {"string_param": "high"}, "invalid value type for 'priority' parameter, expected int64_param"),
        ("priority", {"int64_param": -1}, "'priority'"),
        ("timeout", {"int64_param": -1}, "'timeout'"),
        ("sequence_start", {"int64_param": 1}, "invalid value type for 'sequence_start' parameter"),
        ("anything", {}, "invalid value type for 'anything' parameter"),
    ],
)
def test_bad_parameters(stub: Any, name: str, value: dict[str, Any], wording: str) -> None:
    message = request("FP32", FP32, raw=(RAW,), parameters={name: service_pb2.InferParameter(**value)})
    refusal = refused(stub, message)
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert wording in refusal.details()


def test_overload_says_when_to_try_again(served: Served, stub: Any) -> None:
    model = fake(served.models["FP64"])
    model.error = UNAVAILABLE
    try:
        refusal = refused(stub, request("FP64", described("IN", "FP64", [1]), raw=(bytes(8),)))
    finally:
        model.error = None
    assert refusal.code() is grpc.StatusCode.UNAVAILABLE
    assert refusal.details() == str(UNAVAILABLE)
    assert ("retry-after", "3") in refusal.trailing_metadata()


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for wrong in (b"\xff", b"\x0a\xff", b"\x3a\x80", RAW, b"\x0a\x02\xff\xfe"):
        with pytest.raises(grpc.RpcError) as refusal:
            send(wrong, timeout=20)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


FIELD = st.tuples(st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x3a", b"\xa2\x06"]), st.sampled_from([0, 1, 130, 300]))
"""Tags of strings, of raw contents, and of a field that nobody has; how long its value is."""


@given(st.lists(FIELD, max_size=6))
@examples(25)
def test_split_finds_what_protobuf_finds(fields: list[tuple[bytes, int]]) -> None:
    """Wherever the raw contents stand, and whatever stands beside them."""
    written = b"".join(tag + _varint(size) + bytes(size) for tag, size in fields)
    known = service_pb2.ModelInferRequest.FromString(written)
    for form in (written, memoryview(written)):
        head, raw, name, _ = split(form)
        assert [bytes(each) for each in raw] == list(known.raw_input_contents)
        parsed = service_pb2.ModelInferRequest.FromString(
            head + b"".join(b"\x3a" + _varint(len(each)) + each for each in raw)
        )
        parsed.id = name
        assert parsed == known


@given(st.binary(max_size=60))
@examples(25)
def test_split_takes_or_refuses_any_bytes(written: bytes) -> None:
    try:
        head, raw, name, _ = split(written)
    except InferenceError:
        return
    assert len(head) + sum(map(len, raw)) + len(name.encode()) <= len(written)


def _varint(number: int) -> bytes:
    return bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80, number >> 7))


def test_errors_are_the_clients_exceptions(triton: client.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        triton.infer("nope", [tensor("IN", SAMPLES[Datatype.FP32], "FP32")])
    assert refusal.value.status() == "StatusCode.NOT_FOUND"
