"""The same requests to both servers. What is meant to differ is listed; docs/from-triton.md says it to users."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.triton.comparing import INFER, Both, Request, ask, asks, say_the_same, seen, tensor
from tests.triton.servers import Served

A, B = tensor("A", "FP32", [1, 4], [1, 2, 3, 4]), tensor("B", "FP32", [1, 4], [0.5, 0, -1, 4])
ONE = tensor("IN", "INT32", [1], [7])

REQUESTS: dict[str, Request] = {
    "an inference": asks("add_sub", A, B),
    "with an id": asks("add_sub", A, B, id="mine"),
    "one output": asks("add_sub", A, B, outputs=[{"name": "DIFF"}]),
    "a version": ("POST", "/v2/models/versions/versions/3/infer", {"inputs": [A, B]}),
    "the latest version": asks("versions", A, B),
    "a version that is not served": ("POST", "/v2/models/versions/versions/2/infer", {"inputs": [A, B]}),
    "a version that is none": ("POST", "/v2/models/versions/versions/x/infer", {"inputs": [A, B]}),
    "an ensemble": asks("ensemble", {**A, "name": "X"}, {**B, "name": "Y"}),
    "a completed configuration": asks("completed", tensor("IN", "FP32", [2, 2], [1, 2, 3, 4])),
    "booleans": asks("types", tensor("IN_BOOL", "BOOL", [2], [True, False])),
    "bytes": asks("types", tensor("IN_STRING", "BYTES", [2], ["one", "zwölf"])),
    "large integers": asks("types", tensor("IN_INT64", "INT64", [2], [2**62, -(2**62)])),
    "doubles": asks("types", tensor("IN_FP64", "FP64", [3], [1e-300, 0.1, -2.5])),
    "nested data": asks("types", tensor("IN_INT32", "INT32", [2], [[1], [2]])),
    "no input at all": asks("types"),
    "an input that is given": asks("optional", tensor("NEEDED", "INT32", [1], [1])),
    "both inputs": asks("optional", tensor("NEEDED", "INT32", [1], [1]), tensor("MORE", "INT32", [1], [1])),
    "an input that is missing": asks("add_sub", A),
    "a needed input that is missing": asks("optional", tensor("MORE", "INT32", [1], [1])),
    "an unknown input": asks("errors", {**ONE, "name": "OTHER"}),
    "an unknown output": asks("errors", ONE, outputs=[{"name": "OTHER"}]),
    "another datatype": asks("errors", tensor("IN", "FP32", [1], [1])),
    "no datatype": asks("errors", tensor("IN", "FLOAT", [1], [1])),
    "another shape": asks("errors", tensor("IN", "INT32", [2], [1, 2])),
    "too large a batch": asks(
        "add_sub", {**A, "shape": [9, 4], "data": [0] * 36}, {**B, "shape": [9, 4], "data": [0] * 36}
    ),
    "too little data": asks("errors", tensor("IN", "INT32", [1], [])),
    "too much data": asks("errors", tensor("IN", "INT32", [1], [1, 2])),
    "a number for a text": asks("types", tensor("IN_STRING", "BYTES", [1], [1])),
    "a text for a number": asks("errors", tensor("IN", "INT32", [1], ["a"])),
    "a value that does not fit": asks("types", tensor("IN_UINT8", "UINT8", [1], [300])),
    "a negative size": asks("errors", tensor("IN", "INT32", [-1], [1])),
    "an error of the model's": asks("errors", tensor("IN", "INT32", [1], [1])),
    "an exception of the model's": asks("errors", tensor("IN", "INT32", [1], [2])),
    "a wrong output of the model's": asks("errors", tensor("IN", "INT32", [1], [3])),
    "the best classes": asks(
        "labelled",
        tensor("IN", "FP32", [4], [1, 4, 2, 3]),
        outputs=[{"name": "OUT", "parameters": {"classification": 2}}],
    ),
    **{
        f"the best classes of an ensemble that {each} labels": asks(
            each,
            tensor("X", "FP32", [4], [1, 4, 2, 3]),
            outputs=[{"name": "Y", "parameters": {"classification": 4}}],
        )
        for each in ("inherits", "names")
    },
    "parameters": asks("parameters", ONE, id="me", parameters={"text": "a", "number": 3, "truth": True}),
    "a reserved parameter": asks("parameters", ONE, parameters={"triton_mine": 1}),
    "a model that streams": asks("repeat", tensor("IN", "INT32", [1], [2])),
    "an unknown model": asks("nothing", ONE),
    "a broken model": asks("broken", ONE),
    "a sequence without its start": asks(
        "accumulator", tensor("IN", "INT32", [1, 1], [1]), parameters={"sequence_id": 5}
    ),
    "no sequence": asks("accumulator", tensor("IN", "INT32", [1, 1], [1])),
    "generate": ("POST", "/v2/models/errors/generate", {"IN": 5}),
    "generate with nothing": ("POST", "/v2/models/errors/generate", {}),
    "generate of a model that streams": ("POST", "/v2/models/repeat/generate", {"IN": 1}),
    "metadata": ("GET", "/v2/models/add_sub", None),
    "metadata of versions": ("GET", "/v2/models/versions", None),
    "metadata of an ensemble": ("GET", "/v2/models/ensemble", None),
    "metadata of nothing": ("GET", "/v2/models/nothing", None),
    "ready": ("GET", "/v2/models/add_sub/ready", None),
    "ready of a broken model": ("GET", "/v2/models/broken/ready", None),
    "the server's metadata": ("GET", "/v2", None),
    "live": ("GET", "/v2/health/live", None),
    "statistics of nothing": ("GET", "/v2/models/nothing/stats", None),
    "log settings": ("GET", "/v2/logging", None),
    "loading, when that is not for clients": ("POST", "/v2/repository/models/add_sub/load", {}),
}

DIFFERENT = {
    "a version that is none": "Triton knows no such path",
    "a number for a text": "it is about 'data', as all such errors",
    "an exception of the model's": "Triton tells clients where in the code it was raised",
    "the server's metadata": "the name and version of the server are its own",
}
"""Requests whose answers need not be equal."""

MISTAKES = {
    "a value that does not fit": "Triton makes 44 of 300",
    "a needed input that is missing": "Triton computes without it",
}
"""Requests that Octavo refuses and Triton does not."""


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in {**DIFFERENT, **MISTAKES}])
def test_answers_are_equal(both: Both, name: str) -> None:
    ours, theirs = (ask(each, REQUESTS[name]) for each in both)
    if theirs.is_error and "error" in (told := seen(theirs)):
        assert say_the_same(seen(ours)["error"], told["error"])
    else:
        assert seen(ours) == seen(theirs)
    assert ours.is_success == theirs.is_success
    assert ours.status_code == theirs.status_code or theirs.status_code == 500  # of a client's mistake


@pytest.mark.parametrize("name", MISTAKES)
def test_what_triton_lets_pass_is_refused(both: Both, name: str) -> None:
    ours, theirs = (ask(each, REQUESTS[name]) for each in both)
    assert ours.status_code == 400
    assert ours.json()["error"]
    assert theirs.is_success


def test_exceptions_are_named(both: Both) -> None:
    ours, theirs = (ask(each, REQUESTS["an exception of the model's"]) for each in both)
    assert ours.status_code == theirs.status_code == 500
    assert ours.json()["error"].rstrip() in theirs.json()["error"]
    assert "ValueError: it is two" in ours.json()["error"]


# --- configurations, the index, statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "types",
        "add_sub",
        "optional",
        "errors",
        "repeat",
        "accumulator",
        "completed",
        "labelled",
        "versions",
        "ensemble",
    ],
)
def test_configurations_are_equal(both: Both, model: str) -> None:
    ours, theirs = (each.ask("GET", f"/v2/models/{model}/config").json() for each in both)
    assert ours == theirs


def test_the_index_is_equal(both: Both) -> None:
    def index(server: Served) -> list[Any]:
        found = server.ask("POST", "/v2/repository/index").json()
        return sorted((each["name"], each["version"], each["state"], "reason" in each) for each in found)

    assert index(both[0]) == index(both[1])


def _form(value: Any) -> Any:
    """What there is, whatever its value."""
    if isinstance(value, dict):
        return {name: _form(each) for name, each in value.items()}
    return [_form(each) for each in value[:1]] if isinstance(value, list) else type(value)


def _counts(value: Any) -> Any:
    """The counters, without the times."""
    if isinstance(value, dict):
        return {name: _counts(each) for name, each in value.items() if name not in ("ns", "last_inference")}
    return [_counts(each) for each in value] if isinstance(value, list) else value


def test_statistics_are_equal(both: Both) -> None:
    before = []
    for server in both:
        for _ in range(3):
            assert ask(server, REQUESTS["the latest version"]).status_code == 200
        for name in ("another shape", "an error of the model's"):
            request = REQUESTS[name]
            assert ask(server, request).is_error
        before.append(server.ask("GET", "/v2/models/versions/versions/3/stats").json()["model_stats"])
    assert _form(before[0]) == _form(before[1])
    assert before[0][0]["inference_stats"]["success"]["count"] >= 3


# --- clients ----------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, NDArray[Any]] = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "INT16": np.array([-5, 5], np.int16),
    "INT32": np.array([-5, 5], np.int32),
    "INT64": np.array([-(2**62), 2**62]),
    "FP16": np.array([0.5, np.inf], np.float16),
    "FP32": np.array([0.1, np.nan], np.float32),
    "FP64": np.array([0.1, -1e300]),
    "STRING": np.array([b"\xff\x00", "ä".encode()], object),
}


@pytest.mark.parametrize("library", [triton_http, triton_grpc])
@pytest.mark.parametrize("datatype", ARRAYS)
def test_arrays_come_back(both: Both, library: Any, datatype: str) -> None:
    array = ARRAYS[datatype]
    for server in both:
        with library.InferenceServerClient(server.grpc if library is triton_grpc else server.http) as client:
            kind = "BYTES" if datatype == "STRING" else datatype
            given = library.InferInput(f"IN_{datatype}", list(array.shape), kind)
            given.set_data_from_numpy(array)
            wanted = [library.InferRequestedOutput(f"OUT_{datatype}")]
            found = client.infer("types", [given], outputs=wanted, request_id="it")
            assert np.array_equal(found.as_numpy(f"OUT_{datatype}"), array, equal_nan=array.dtype.kind == "f")


GRPC_ERRORS: dict[str, tuple[str, list[int], str, dict[str, Any]]] = {
    "an unknown model": ("nothing", [1], "INT32", {}),
    "another shape": ("errors", [2], "INT32", {}),
    "another datatype": ("errors", [1], "FP32", {}),
    "a version that is not served": ("versions", [1], "INT32", {"model_version": "2"}),
    "a model that streams": ("repeat", [1], "INT32", {}),
}


@pytest.mark.parametrize("name", GRPC_ERRORS)
def test_errors_of_grpc_are_equal(both: Both, name: str) -> None:
    model, shape, datatype, more = GRPC_ERRORS[name]
    found = []
    for server in both:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            given = triton_grpc.InferInput("IN", shape, datatype)
            given.set_data_from_numpy(np.zeros(shape, np.float32 if datatype == "FP32" else np.int32))
            with pytest.raises(InferenceServerException) as raised:
                client.infer(model, [given], **more)
            found.append((raised.value.message(), raised.value.status()))
    assert say_the_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_raw_requests(both: Both) -> None:
    answers = []
    for server in both:
        answer = server.ask(
            "POST",
            INFER.format("errors"),
            content=struct.pack("<i", 9),
            headers={"Inference-Header-Content-Length": "0"},
        )
        size = int(answer.headers["inference-header-content-length"])
        answers.append((answer.status_code, json.loads(answer.content[:size]), answer.content[size:]))
    assert answers[0] == answers[1]
