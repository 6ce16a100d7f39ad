"""Inference over HTTP, with Triton's own client."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient._plugin import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from tests.server.inference.conftest import MAX_BODY
from tests.server.inference.fake import UNAVAILABLE, FakeClient

Client = triton.InferenceServerClient
Models = dict[str, FakeClient]

X = np.array([[1, 2], [3, 4]], np.float32)


class Page(InferenceServerClientPlugin):  # type: ignore[misc]
    """Says where a page comes from, so that its requests go through the application."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, request: Any) -> None:
        request.headers["origin"] = self._url


@pytest.fixture(scope="module", params=["direct", "through"])
def client(request: pytest.FixtureRequest, hosted_url: str) -> Iterator[Client]:
    with triton.InferenceServerClient(hosted_url.removeprefix("http://"), concurrency=4) as client:
        if request.param == "through":
            client.register_plugin(Page(hosted_url))
        yield client


@pytest.fixture(scope="module", params=["direct", "through"])
def web(request: pytest.FixtureRequest, hosted_url: str) -> Iterator[httpx.Client]:
    headers = {"origin": hosted_url} if request.param == "through" else {}
    with httpx.Client(base_url=hosted_url, headers=headers, timeout=20) as client:
        yield client


Y = np.array([[5], [6]], np.int64)


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str, *, binary: bool = True) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    return found.set_data_from_numpy(array, binary_data=binary)


def pair(*, binary: bool = True) -> list[triton.InferInput]:
    return [tensor("IN", X, "FP32", binary=binary), tensor("IN2", Y, "INT64", binary=binary)]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Datatype, np.ndarray[Any, Any]]:
    datatype = draw(st.sampled_from(list(Datatype)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if datatype is Datatype.BYTES:
        return datatype, draw(
            hnp.arrays(object, shape, elements=st.text(max_size=5).map(str.encode), fill=st.nothing())
        )
    if datatype is Datatype.BF16:
        return datatype, draw(hnp.arrays("<u2", shape)).view(ml_dtypes.bfloat16)
    elements = {"allow_nan": True, "allow_infinity": True} if datatype.dtype.kind == "f" else None
    return datatype, draw(hnp.arrays(datatype.dtype, shape, elements=elements))


@settings(max_examples=25)
@given(given_tensor=tensors())
def test_tensors_come_back_as_they_went(client: Client, given_tensor: tuple[Datatype, np.ndarray[Any, Any]]) -> None:
    datatype, array = given_tensor
    result = client.infer(datatype.value, [tensor("IN", array, datatype.value)])
    found = result.as_numpy("OUT")
    assert list(result.get_output("OUT")["shape"]) == list(array.shape)
    assert found.dtype == array.dtype
    if datatype is Datatype.BF16:  # numpy compares no NaN of it
        found, array = found.astype(np.float32), array.astype(np.float32)
    np.testing.assert_array_equal(found.reshape(array.shape), array)


@settings(max_examples=25)
@given(given_tensor=tensors())
def test_json_says_the_same_as_binary(client: Client, given_tensor: tuple[Datatype, np.ndarray[Any, Any]]) -> None:
    datatype, array = given_tensor
    if datatype in ("FP16", "BF16") or not np.isfinite(array.astype(float) if array.dtype.kind == "f" else 0).all():
        return
    wanted = [triton.InferRequestedOutput("OUT", binary_data=False)]
    given_json = triton.InferInput("IN", list(array.shape), datatype.value)
    values = [each.decode() if isinstance(each, bytes) else each for each in array.ravel().tolist()]
    given_json._data = values
    result = client.infer(datatype.value, [given_json], outputs=wanted)
    assert "parameters" not in result.get_output("OUT")
    assert result.as_numpy("OUT").ravel().tolist() == values


def test_several_tensors_a_name_and_the_batch(client: Client, models: Models) -> None:
    result = client.infer("pair", pair(), request_id='a"b', priority=3, timeout=1500)
    np.testing.assert_array_equal(result.as_numpy("OUT"), X)
    np.testing.assert_array_equal(result.as_numpy("OUT2"), Y)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ('a"b', "pair", "1")
    seen = models["pair"].seen
    assert seen is not None
    assert (seen.priority, seen.timeout) == (3, 0.0015)


def test_outputs_are_in_the_order_in_which_they_are_wanted(client: Client, models: Models) -> None:
    wanted = [triton.InferRequestedOutput("OUT2", binary_data=False), triton.InferRequestedOutput("OUT")]
    result = client.infer("pair", pair(), outputs=wanted)
    assert [each["name"] for each in result.get_response()["outputs"]] == ["OUT2", "OUT"]
    np.testing.assert_array_equal(result.as_numpy("OUT2"), Y)
    np.testing.assert_array_equal(result.as_numpy("OUT"), X)
    only = client.infer("pair", pair(binary=False), outputs=wanted[1:])
    assert only.as_numpy("OUT2") is None
    assert models["pair"].seen is not None
    assert list(models["pair"].seen.outputs) == ["OUT"]


def test_names_may_have_slashes_and_dots(client: Client) -> None:
    result = client.infer("org/slash.v1-x", [tensor("IN", X, "FP32")], model_version="1")
    np.testing.assert_array_equal(result.as_numpy("OUT"), X)


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes(client: Client, *, binary: bool) -> None:
    rows = np.array([[1, 3, 2], [-1, -2, -3]], np.float32)
    wanted = [triton.InferRequestedOutput("OUT", binary_data=binary, class_count=2)]
    found = client.infer("classes", [tensor("IN", rows, "FP32")], outputs=wanted).as_numpy("OUT")
    assert found.tolist() == (
        [[b"3.000000:1:dog", b"2.000000:2:cow"], [b"-1.000000:0:cat", b"-2.000000:1:dog"]]
        if binary
        else [["3.000000:1:dog", "2.000000:2:cow"], ["-1.000000:0:cat", "-2.000000:1:dog"]]
    )


@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("reply_encoding", [None, "gzip", "deflate"])
def test_compression(client: Client, request_encoding: str | None, reply_encoding: str | None) -> None:
    array = np.arange(1000, dtype=np.float32)
    result = client.infer(
        "FP32",
        [tensor("IN", array, "FP32")],
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=reply_encoding,
    )
    np.testing.assert_array_equal(result.as_numpy("OUT"), array)


def test_replies_are_compressed_as_clients_like_it_best(web: httpx.Client) -> None:
    body = {"inputs": [{"name": "IN", "shape": [300], "datatype": "INT32", "data": [7] * 300}]}
    for header, encoding in (
        ("gzip", "gzip"),
        ("deflate;q=0.5, gzip;q=0.1", "deflate"),
        ("br", None),
        ("gzip;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=x", None),
    ):
        answer = web.post("/v2/models/INT32/infer", json=body, headers={"accept-encoding": header})
        assert answer.headers.get("content-encoding") == encoding
        assert answer.json()["outputs"][0]["data"] == [7] * 300


def test_raw_binary_requests(web: httpx.Client) -> None:
    headers = {"inference-header-content-length": "0"}
    answer = web.post("/v2/models/classes/infer", content=X.tobytes()[:12], headers=headers)
    head = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    described = json.loads(answer.content[:head])
    assert described["outputs"] == [
        {"name": "OUT", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    ]
    assert answer.content[head:] == X.tobytes()[:12]
    variable = web.post("/v2/models/FP32/infer", content=X.tobytes(), headers=headers)
    assert b'"shape":[4]' in variable.content
    for model, data, message in (
        ("classes", b"1234", "Expected 12, got 4"),
        ("FP32", b"12345", "Expected 4, got 5"),
        ("pair", b"", "Raw request must only have 1 input"),
        ("BYTES", b"", "the model must have input shape [1]"),
    ):
        refused = web.post(f"/v2/models/{model}/infer", content=data, headers=headers)
        assert refused.status_code == 400
        assert message in refused.json()["error"]


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("written", ["binary", "text", "constants"])
def test_numbers_that_json_does_not_have(web: httpx.Client, written: str, datatype: str) -> None:
    array = np.array([np.nan, 0.1, np.inf, -np.inf], np.float32 if datatype == "FP32" else np.float64)
    words = {"text": ["NaN", 0.1, "Infinity", "-Infinity"], "constants": array.tolist()}
    tensor = {"name": "IN", "shape": [4], "datatype": datatype}
    if written == "binary":
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}]}).encode()
        content, headers = head + array.tobytes(), {"inference-header-content-length": str(len(head))}
    else:
        content, headers = json.dumps({"inputs": [{**tensor, "data": words[written]}]}).encode(), {}
    answer = web.post(f"/v2/models/{datatype}/infer", content=content, headers=headers)
    data = json.loads(answer.content, parse_constant=refuse_constant)["outputs"][0]["data"]
    assert data == words["text"]
    np.testing.assert_array_equal(np.array(data, array.dtype), array)  # as tritonclient does
    asked = json.dumps({"IN": words["constants" if written == "constants" else "text"]}).encode()
    for path in (f"/v2/models/{datatype}/generate", f"/v1/models/{datatype}/predict"):
        answer = web.post(path, content=asked)
        assert json.loads(answer.content, parse_constant=refuse_constant)["OUT"] == words["text"]


def test_numbers_that_json_does_not_have_in_rows_and_alone(web: httpx.Client) -> None:
    rows = [["NaN", 1.5], [2.5, "-Infinity"]]
    answer = web.post("/v1/models/FP32/predict", json={"IN": rows})
    assert answer.json() == {"OUT": rows}
    answer = web.post("/v1/models/FP32:predict", json={"instances": [{"IN": "Infinity"}, {"IN": 1.5}]})
    assert answer.json() == {"predictions": ["Infinity", 1.5]}
    large = [*range(100_000), "NaN"]
    answer = web.post("/v2/models/FP32/generate", json={"IN": large})
    assert answer.json()["OUT"] == large
    answer = web.post("/v2/models/FP32/generate", content=json.dumps({"IN": [*range(100_000), float("nan")]}))
    assert answer.status_code == 400
    assert "NaN and Infinity are no JSON: write them as strings" in answer.json()["error"]


def test_a_byte_order_mark_is_no_mistake(web: httpx.Client) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"inputs": [IN]}).encode()
    assert web.post("/v2/models/FP32/infer", content=body).json()["outputs"][0]["data"] == [1, 2]
    body = b'\xef\xbb\xbf{"IN":[1,2]}'
    assert web.post("/v2/models/FP32/generate", content=body).json()["OUT"] == [1, 2]


@pytest.mark.parametrize("model", ["FP32", "BYTES", "words"])
def test_an_empty_body_is_no_request(web: httpx.Client, model: str) -> None:
    path = f"/v2/models/{model}/infer{'_stream' if model == 'words' else ''}"
    for encoding, content in (("identity", b""), ("gzip", b""), ("deflate", b""), ("gzip", gzip.compress(b""))):
        answer = web.post(path, content=content, headers={"content-encoding": encoding})
        assert answer.status_code == 400
        assert "The document is empty" in answer.json()["error"]


def test_bytes_that_are_no_text_are_not_written_as_text(web: httpx.Client) -> None:
    head = b'{"inputs":[{"name":"IN","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}'
    length = {"inference-header-content-length": str(len(head))}
    answer = web.post("/v2/models/BYTES/infer", content=head + b"\2\0\0\0\xff\xfe", headers=length)
    assert answer.status_code == 400
    assert "binary data format" in answer.json()["error"]


# --- shared memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def region(client: Client) -> Iterator[Any]:
    key = f"/test-oip-{os.getpid()}"
    handle = shm.create_shared_memory_region("r", key, 64)
    client.register_system_shared_memory("r", key, 64)
    yield handle
    client.unregister_system_shared_memory("r")
    shm.destroy_shared_memory_region(handle)


def test_tensors_in_shared_memory(client: Client, region: Any) -> None:
    shm.set_shared_memory_region(region, [X])
    given_input = triton.InferInput("IN", [2, 2], "FP32")
    given_input.set_shared_memory("r", 16)
    wanted = triton.InferRequestedOutput("OUT")
    wanted.set_shared_memory("r", 32, offset=16)
    result = client.infer("FP32", [given_input], outputs=[wanted])
    described = result.get_output("OUT")
    assert described["shape"] == [2, 2]
    assert "parameters" not in described  # those that Triton's C++ client finds have to say a size of binary data
    np.testing.assert_array_equal(shm.get_contents_as_numpy(region, np.float32, [8])[4:], X.ravel())
    assert [each["name"] for each in client.get_system_shared_memory_status()] == ["r"]
    assert client.get_cuda_shared_memory_status() == []


def test_shared_memory_that_is_too_small(client: Client, region: Any) -> None:
    wanted = triton.InferRequestedOutput("OUT")
    wanted.set_shared_memory("r", 8)
    with pytest.raises(InferenceServerException, match="should be at least 16 bytes"):
        client.infer("FP32", [tensor("IN", X, "FP32")], outputs=[wanted])
    given_input = triton.InferInput("IN", [2, 2], "FP32")
    given_input.set_shared_memory("r", 65)
    with pytest.raises(InferenceServerException, match="Invalid offset \\+ byte size"):
        client.infer("FP32", [given_input])
    with pytest.raises(InferenceServerException, match="already in manager"):
        client.register_system_shared_memory("r", "/x", 1)


# --- what cannot be ---------------------------------------------------------------------------------------------------

IN = {"name": "IN", "shape": [2], "datatype": "FP32", "data": [1, 2]}
BINARY = {"name": "IN", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}

WRONG: list[tuple[Any, str]] = [
    (b"", "The document is empty"),
    (b"{", "failed to parse the request JSON buffer"),
    (b"\xff", "failed to parse the request JSON buffer"),
    ([], "non-existing object member 'inputs'"),
    ({}, "non-existing object member 'inputs'"),
    ({"inputs": 3}, "Unable to parse 'inputs': attempt to access JSON non-array as array"),
    ({"inputs": [3]}, "Unable to parse 'inputs'"),
    ({"inputs": []}, "missing required input(s) ['IN']"),
    ({"inputs": [IN], "id": 3}, "Unable to parse 'id': attempt to access JSON non-string as string"),
    ({"inputs": [IN], "outputs": 3}, "Unable to parse 'outputs'"),
    ({"inputs": [IN], "parameters": 3}, "Unable to parse 'parameters'"),
    ({"inputs": [IN], "parameters": {"timeout": -1}}, "Unable to parse 'timeout'"),
    ({"inputs": [IN], "parameters": {"triton_x": 1}}, "reserved for Triton usage"),
    ({"inputs": [IN], "parameters": {"mine": 2**64}}, "parameter 'mine' is no whole number of 64 bits"),
    ({"inputs": [IN], "parameters": {"mine": -(2**63) - 1}}, "parameter 'mine' is no whole number of 64 bits"),
    ({"inputs": [IN], "parameters": {"sequence_id": 2**64}}, "Unable to parse 'sequence_id'"),
    (b'{"inputs":[],"id":"\\ud800"}', "failed to parse the request JSON buffer"),
    ({"inputs": [IN], "parameters": {"binary_data_output": 1}}, "Unable to parse 'binary_data_output'"),
    ({"inputs": [IN, IN]}, "input 'IN' already exists in request"),
    ({"inputs": [{**IN, "name": "X"}]}, "unexpected inference input 'X' for model 'FP32'"),
    ({"inputs": [IN], "outputs": [{"name": "X"}]}, "unexpected inference output 'X' for model 'FP32'"),
    ({"inputs": [{**IN, "shape": [-1]}]}, "Unable to parse 'shape'"),
    ({"inputs": [{**IN, "shape": [1.5]}]}, "Unable to parse 'shape'"),
    ({"inputs": [{**IN, "shape": [2**40, 2**40]}]}, "exceeds maximum size"),
    ({"inputs": [{**IN, "shape": [2**80, 0], "data": []}]}, "exceeds maximum size"),
    ({"inputs": [{**IN, "shape": [1] * 99}]}, "99 dimensions"),
    ({"inputs": [{**IN, "shape": [3]}]}, "Shape does not match true shape of 'data' field"),
    ({"inputs": [{**IN, "data": [1, "2"]}]}, "attempt to access JSON non-number as double"),
    ({"inputs": [{**IN, "data": [1, None]}]}, "attempt to access JSON non-number as double"),
    ({"inputs": [{**IN, "data": 3}]}, "Unable to parse 'data'"),
    ({"inputs": [{**IN, "data": [1e39, 1]}]}, "do not fit FP32"),
    ({"inputs": [{**IN, "data": [1, "nan"]}]}, "attempt to access JSON non-number as double"),
    (b'{"inputs":[{"name":"IN","shape":[2],"datatype":"FP32","data":[1e400,1]}]}', "Number out of range"),
    (b'{"inputs":[{"name":"IN","shape":[2],"datatype":"FP32","data":[NaN,1e400]}]}', "1e400 is too large"),
    (b'{"inputs":[{"name":"IN","shape":[2],"datatype":"INT32","data":[NaN,1]}]}', "non-signed-integer"),
    ({"inputs": [{**IN, "datatype": "FP99"}]}, "invalid datatype for input IN"),
    ({"inputs": [{**IN, "datatype": "FP16"}]}, "receiving FP16 data via JSON is not supported"),
    ({"inputs": [{**IN, "datatype": "INT32"}]}, "data-type is 'INT32', but model 'FP32' expects 'FP32'"),
    ({"inputs": [{**IN, **BINARY}]}, "But set 'data' 'binary_data_size'"),
    ({"inputs": [{**BINARY, "parameters": {}}]}, "But no field is set"),
    ({"inputs": [BINARY]}, "expecting 8 additional bytes for model 'FP32'"),
    ({"inputs": [{**BINARY, "parameters": {"binary_data_size": 2**70}}]}, "additional bytes"),
    ({"inputs": [{**BINARY, "parameters": {"binary_data_size": -1}}]}, "Unable to parse 'binary_data_size'"),
    ({"inputs": [{**BINARY, "parameters": {"shared_memory_region": "x"}}]}, "Unable to find shared memory region: 'x'"),
    ({"inputs": [IN], "outputs": [{"name": "OUT", "parameters": {"classification": -1}}]}, "'classification'"),
    (
        {
            "inputs": [IN],
            "outputs": [{"name": "OUT", "parameters": {"shared_memory_region": "x", "binary_data": True}}],
        },
        "Output can't set both 'shared_memory_region' and 'binary_data'",
    ),
    (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "Unable to parse 'inputs'"),
    (b'{"inputs":[{"name":"IN","shape":[1],"datatype":"FP32","data":' + b"[" * 3000 + b"]" * 3000 + b"}]}", "depth"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_bad_requests_are_the_clients_fault(web: httpx.Client, body: Any, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = web.post("/v2/models/FP32/infer", content=content)
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    assert message in answer.json()["error"]


@given(st.data())
@settings(max_examples=40)
def test_a_damaged_request_is_refused_or_answered(web: httpx.Client, data: st.DataObject) -> None:
    head = json.dumps({"inputs": [BINARY], "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]}).encode()
    whole = bytearray(head + b"12345678")
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    length = data.draw(st.sampled_from([len(head), 0, len(cut), -1, len(head) + 9, 2**64]))
    headers = {"inference-header-content-length": str(length)}
    answer = web.post("/v2/models/FP32/infer", content=cut, headers=headers)
    assert answer.status_code in (200, 400, 404)


@pytest.mark.parametrize("length", ["-1", "9999", "99999999999999999999"])
def test_the_heads_length_is_one_of_the_body(web: httpx.Client, length: str) -> None:
    headers = {"inference-header-content-length": length}
    answer = web.post("/v2/models/FP32/infer", content=b"12345678", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"] == f"inference header size should be in range (0, 8), got: {length}"


def test_bytes_too_many_or_too_few(web: httpx.Client) -> None:
    head = json.dumps({"inputs": [BINARY]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    for data, message in (
        (b"1234", "unexpected size for input 'IN', expecting 4 additional bytes for model 'FP32'"),
        (b"123456789", "unexpected additional input data for model 'FP32'"),
    ):
        answer = web.post("/v2/models/FP32/infer", content=head + data, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, message)


def test_large_bodies_are_bounded(web: httpx.Client) -> None:
    answer = web.post("/v2/models/FP32/infer", content=bytes(MAX_BODY + 1))
    assert answer.status_code == 413
    assert f"exceeds the maximum allowed input size of {MAX_BODY} bytes" in answer.json()["error"]
    chunks = iter([bytes(MAX_BODY // 2)] * 3)
    assert web.post("/v2/models/FP32/infer", content=chunks).status_code == 413
    bomb = zlib.compress(bytes(2 * MAX_BODY))
    assert web.post("/v2/models/FP32/infer", content=bomb, headers={"content-encoding": "deflate"}).status_code == 413


def test_a_bomb_of_json_is_refused_before_it_is_unpacked(web: httpx.Client) -> None:
    values = b"[" + b"1," * (2**20) + b"1]"
    body = b'{"inputs":[{"name":"IN","shape":[3],"datatype":"FP32","data":' + values + b"}]}"
    answer = web.post("/v2/models/FP32/infer", content=body)
    assert answer.status_code == 413
    assert "in binary" in answer.json()["error"]


def test_large_tensors(client: Client) -> None:
    array = np.random.default_rng(0).random(MAX_BODY // 8, np.float32)
    np.testing.assert_array_equal(client.infer("FP32", [tensor("IN", array, "FP32")]).as_numpy("OUT"), array)
    some = array[:50_000]
    wanted = [triton.InferRequestedOutput("OUT", binary_data=False)]
    result = client.infer("FP32", [tensor("IN", some, "FP32", binary=False)], outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("OUT"), some)


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [(b"x", "gzip", 400), (gzip.compress(b"{}", mtime=0)[:-3], "gzip", 400), (b"{}", "br", 415)],
)
def test_encodings_that_are_none(web: httpx.Client, content: bytes, encoding: str, status: int) -> None:
    answer = web.post("/v2/models/FP32/infer", content=content, headers={"content-encoding": encoding})
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_models_and_versions_that_are_none(client: Client) -> None:
    for name, version, message in (("nope", "", "'nope' is not found"), ("FP32", "7", "'FP32' version 7 is not found")):
        with pytest.raises(InferenceServerException, match=f"404.*Request for unknown model: {message}"):
            client.infer(name, [tensor("IN", X, "FP32")], model_version=version)


def test_overload_says_when_to_come_again(web: httpx.Client, models: Models) -> None:
    models["FP32"].error = UNAVAILABLE
    answer = web.post("/v2/models/FP32/infer", json={"inputs": [IN]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json() == {"error": "Exceeds maximum queue size"}
    models["FP32"].error = InferenceError("it broke", Code.INTERNAL)
    answer = web.post("/v2/models/FP32/infer", json={"inputs": [IN]})
    assert (answer.status_code, answer.json()) == (500, {"error": "it broke"})
