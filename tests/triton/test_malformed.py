"""Requests that say something that cannot be: Octavo answers all of them with 400 and Triton's words. Triton says 500
to many, and computes something for some."""

import gzip
import json
import struct
import zlib
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.triton.comparing import INFER, Both, say_the_same

IN: dict[str, Any] = {"name": "IN", "datatype": "INT32", "shape": [1], "data": [7]}
NO_DATA = {name: each for name, each in IN.items() if name != "data"}
WHOLE = json.dumps({"inputs": [IN]}).encode()


def with_value(datatype: str, written: str) -> bytes:
    given = {"name": f"IN_{datatype}", "datatype": datatype.replace("STRING", "BYTES"), "shape": [1], "data": [0]}
    return json.dumps({"inputs": [given]}).replace("[0]", f"[{written}]").encode()


def said(**members: Any) -> bytes:
    return json.dumps({"inputs": [IN], **members}).encode()


def given(*inputs: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)}).encode()


Body = tuple[str, bytes, dict[str, str]]


def body(content: bytes, model: str = "errors", **headers: str) -> Body:
    return model, content, {name.replace("_", "-"): value for name, value in headers.items()}


BODIES: dict[str, Body] = {
    "nothing but a blank": body(b" "),
    "null": body(b"null"),
    "a list": body(b"[]"),
    "half of it": body(WHOLE[:20]),
    "more behind it": body(WHOLE + b" x"),
    "no inputs": body(b"{}"),
    "inputs that are null": body(b'{"inputs":null}'),
    "no required input": body(given()),
    "no name": body(given({"datatype": "INT32", "shape": [1], "data": [1]})),
    "no datatype": body(given({"name": "IN", "shape": [1], "data": [1]})),
    "no shape": body(given({"name": "IN", "datatype": "INT32", "data": [1]})),
    "no data": body(given(NO_DATA)),
    "data that is no list": body(given({**IN, "data": 1})),
    "data that is an object": body(given({**IN, "data": [{"a": 1}]})),
    "a shape of texts": body(given({**IN, "shape": ["1"]})),
    "a shape of fractions": body(given({**IN, "shape": [1.5]})),
    "a shape without dimensions": body(given({**IN, "shape": []})),
    "a datatype in small letters": body(given({**IN, "datatype": "int32"})),
    "an input that is there twice": body(given(IN, IN)),
    "data in two places": body(given({**IN, "parameters": {"binary_data_size": 4}})),
    "fewer bytes than are said": body(given({**NO_DATA, "parameters": {"binary_data_size": 4}})),
    "a negative number of bytes": body(given({**NO_DATA, "parameters": {"binary_data_size": -1}})),
    "no bytes": body(given({**NO_DATA, "parameters": {"binary_data_size": 0}})),
    "an unknown region": body(
        given({**NO_DATA, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}})
    ),
    "an id that is a number": body(said(id=3)),
    "outputs that are an object": body(said(outputs={})),
    "an output without a name": body(said(outputs=[{}])),
    "a parameter that is an object": body(said(parameters={"a": {}})),
    "a parameter that is null": body(said(parameters={"a": None})),
    "parameters that are a list": body(said(parameters=[])),
    "a reserved parameter": body(said(parameters={"triton_a": 1})),
    "a negative priority": body(said(parameters={"priority": -1})),
    "a timeout that is a text": body(said(parameters={"timeout": "1"})),
    "a start that is a number": body(said(parameters={"sequence_start": 1})),
    "a sequence that is a fraction": body(said(parameters={"sequence_id": 1.5})),
    "an integer for a truth value": body(with_value("BOOL", "1"), "types"),
    "a text for a number": body(with_value("FP32", '"1"'), "types"),
    "a fraction for an integer": body(with_value("INT32", "1.5"), "types"),
    "a negative number for one that is not": body(with_value("UINT8", "-1"), "types"),
    "an integer of more than 64 bits": body(with_value("INT64", str(2**63)), "types"),
    "a number beyond all": body(with_value("FP64", "1e400"), "types"),
    "null for a number": body(with_value("FP32", "null"), "types"),
    "half of a character": body(with_value("STRING", r'"\ud800"'), "types"),
    "an FP16 in JSON": body(with_value("FP16", "1"), "types"),
    "a head that is longer than all": body(WHOLE, inference_header_content_length="9999"),
    "a head of a negative length": body(WHOLE, inference_header_content_length="-5"),
    "a head that ends too early": body(WHOLE, inference_header_content_length="5"),
    "three bytes for a number": body(b"abc", inference_header_content_length="0"),
    "one tensor for two": body(b"abcd", "add_sub", inference_header_content_length="0"),
    "nested 900 deep": body(given({**IN, "data": 0}).replace(b'"data": 0', b'"data": ' + b"[" * 900 + b"]" * 900)),
}

OWN_WORDS = {
    "nothing but a blank": "each parser has its own, and so below",
    "half of it": "",
    "more behind it": "",
    "half of a character": "",
    "a number beyond all": "",
    "a head that ends too early": "",
    "data that is no list": "Octavo names the input",
    "parameters that are a list": "it is about 'parameters', as all such errors",
    "a negative priority": "Octavo says which there are, and so below",
    "a timeout that is a text": "",
    "a start that is a number": "",
    "a sequence that is a fraction": "",
    "a negative number for one that is not": "",
    "an integer of more than 64 bits": "",
    "three bytes for a number": "Triton calls the input raw_input",
    "nested 900 deep": "Triton counts the values",
}
"""Requests whose errors need not begin with Triton's words."""

LET_PASS: dict[str, Body] = {
    "300 for an UINT8": body(with_value("UINT8", "300"), "types"),
    "2**31 for an INT32": body(with_value("INT32", str(2**31)), "types"),
    "32768 for an INT16": body(with_value("INT16", "32768"), "types"),
    "more than an FP32 can be": body(with_value("FP32", "1e39"), "types"),
    "no gzip": body(b"abcd", "ragged", content_encoding="gzip"),
    "half of a gzip": body(gzip.compress(WHOLE)[:-5], content_encoding="gzip"),
    "a gzip that does not add up": body(gzip.compress(WHOLE)[:-8] + bytes(8), content_encoding="gzip"),
    "half of a deflate": body(zlib.compress(WHOLE)[:-5], content_encoding="deflate"),
    "more behind a gzip": body(gzip.compress(WHOLE) + b"more", content_encoding="gzip"),
    "an empty body": body(b"", "ragged"),
    "a nul in a name": body(given({**IN, "name": "IN\0"})),
    "lists beside values": body(
        given({"name": "IN_INT32", "datatype": "INT32", "shape": [2], "data": [[1], 2]}), "types"
    ),
}
"""What Triton computes something for."""


@pytest.mark.parametrize("name", BODIES)
def test_the_client_s_mistakes(both: Both, name: str) -> None:
    model, content, headers = BODIES[name]
    ours, theirs = (each.ask("POST", INFER.format(model), content=content, headers=headers) for each in both)
    assert ours.status_code == (404 if theirs.status_code == 404 else 400)
    assert theirs.status_code in (ours.status_code, 500)
    assert ours.json().keys() == {"error"}
    assert name in OWN_WORDS or say_the_same(ours.json()["error"], theirs.json()["error"])


@pytest.mark.parametrize("name", LET_PASS)
def test_what_triton_lets_pass(both: Both, name: str) -> None:
    model, content, headers = LET_PASS[name]
    ours, theirs = (each.ask("POST", INFER.format(model), content=content, headers=headers) for each in both)
    assert (ours.status_code, theirs.status_code) == (400, 200)


def test_the_servers_are_still_there(both: Both) -> None:
    """What ends Triton, Octavo alone is asked."""
    deep, large = b"[" * 100_000 + b"]" * 100_000, [2**40, 2**40]
    bodies = [
        given({**IN, "data": 0}).replace(b'"data": 0', b'"data": ' + deep),
        said(parameters={"a": 0}).replace(b'{"a": 0}', b'{"a": ' + deep + b"}"),
        given({"name": "IN_INT32", "datatype": "INT32", "shape": large, "data": [1]}),
    ]
    for content in bodies:
        assert both[0].ask("POST", INFER.format("types"), content=content).status_code == 400
    for path in ("generate", "generate_stream"):
        answer = both[0].ask("POST", f"/v2/models/errors/{path}", content=b'{"IN":' + deep + b"}")
        assert answer.status_code == 400
    for server in both:
        assert server.ask("POST", INFER.format("errors"), content=WHOLE).status_code == 200


# --- gRPC -------------------------------------------------------------------------------------------------------------

SEVEN = struct.pack("<i", 7)


def message(*inputs: Any, raw: tuple[bytes, ...] = (SEVEN,), model: str = "errors", **more: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **more)


def tensor(name: str = "IN", datatype: str = "INT32", shape: tuple[int, ...] = (1,), **more: Any) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **more)


def contents(**values: Any) -> Any:
    return service_pb2.InferTensorContents(**values)


def parameter(**value: Any) -> Any:
    return service_pb2.InferParameter(**value)


def wanted(**parameters: Any) -> Any:
    return service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="OUT", parameters=parameters)


REGION = {"shared_memory_region": parameter(string_param="r"), "shared_memory_byte_size": parameter(int64_param=4)}

MESSAGES = {
    "no model": message(tensor(), model=""),
    "no inputs": message(raw=()),
    "neither bytes nor values": message(tensor(), raw=()),
    "both bytes and values": message(tensor(contents=contents(int_contents=[7]))),
    "values of another type": message(tensor(contents=contents(int64_contents=[7])), raw=()),
    "too many values": message(tensor("IN_INT32", contents=contents(int_contents=[1, 2, 3])), raw=(), model="types"),
    "too few bytes": message(tensor(), raw=(b"abc",)),
    "a negative size": message(tensor(shape=(-1,))),
    "no dimensions": message(tensor(shape=())),
    "another datatype": message(tensor(datatype="FP32")),
    "an unknown datatype": message(tensor(datatype="FLOAT")),
    "an input that is there twice": message(tensor(), tensor(), raw=(SEVEN, SEVEN)),
    "an unknown output": message(tensor(), outputs=[type(wanted())(name="X")]),
    "a text that is too short": message(tensor("IN_STRING", "BYTES"), raw=(b"\5\0\0\0abc",), model="types"),
    "two texts for one": message(tensor("IN_STRING", "BYTES"), raw=(b"\1\0\0\0a\1\0\0\0b",), model="types"),
    "no text": message(tensor("IN_STRING", "BYTES"), raw=(b"",), model="types"),
    "half of a length": message(tensor("IN_STRING", "BYTES"), raw=(b"\5\0",), model="types"),
    "a priority that is a text": message(tensor(), parameters={"priority": parameter(string_param="5")}),
    "a negative priority": message(tensor(), parameters={"priority": parameter(int64_param=-1)}),
    "a timeout that is a text": message(tensor(), parameters={"timeout": parameter(string_param="5")}),
    "a start that is a number": message(tensor(), parameters={"sequence_start": parameter(int64_param=1)}),
    "a reserved parameter": message(tensor(), parameters={"triton_a": parameter(int64_param=1)}),
    "a version that is none": message(tensor(), model_version="x"),
    "a version that is not there": message(tensor(), model_version="9"),
    "classes that are a text": message(tensor(), outputs=[wanted(classification=parameter(string_param="1"))]),
    "a negative number of classes": message(tensor(), outputs=[wanted(classification=parameter(int64_param=-1))]),
    "an unknown region": message(tensor(parameters=REGION), raw=()),
    "a region without a size": message(
        tensor(parameters={"shared_memory_region": parameter(string_param="r")}), raw=()
    ),
}

OWN_WORDS_OF_GRPC = {
    "a negative size": "it is no shape of the model's, as others",
    "an unknown datatype": "Octavo says which there are",
    "a negative priority": "",
    "a reserved parameter": "",
    "a timeout that is a text": "which may be unsigned here",
    "a version that is none": "Triton says what function refused it",
    "a negative number of classes": "0 is none, too",
    "a text that is too short": "",
    "half of a length": "Triton speaks of buffers",
}


def called(server: Any, request: Any) -> tuple[str, str]:
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


@pytest.mark.parametrize("name", MESSAGES)
def test_the_client_s_mistakes_over_grpc(both: Both, name: str) -> None:
    ours, theirs = (called(each, MESSAGES[name]) for each in both)
    assert ours[0] == theirs[0] != "OK"
    assert name in OWN_WORDS_OF_GRPC or say_the_same(ours[1], theirs[1])


def test_values_that_do_not_fit_over_grpc(both: Both) -> None:
    for datatype, kind, value in (("UINT8", "uint_contents", 300), ("INT16", "int_contents", 2**15)):
        given = tensor(f"IN_{datatype}", datatype, contents=contents(**{kind: [value]}))
        ours, theirs = (called(each, message(given, raw=(), model="types")) for each in both)
        assert (ours[0], theirs[0]) == ("INVALID_ARGUMENT", "OK")


def test_shapes_that_overflow_over_grpc(both: Both) -> None:
    for shape in ((2**40, 2**40), (2**63 - 1, 2), (2**32, 2**32), (2**62, 4, 0)):
        for datatype in ("INT32", "STRING"):
            request = message(tensor(f"IN_{datatype}", datatype.replace("STRING", "BYTES"), shape), model="types")
            assert called(both[0], request)[0] == "INVALID_ARGUMENT"
