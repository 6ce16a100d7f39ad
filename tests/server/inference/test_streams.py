"""Results that come one after the other, and tensors as members of JSON."""

import json
from typing import Any

import httpx
import pytest

from octavo.hosting.errors import Code, InferenceError
from tests.server.inference.fake import FakeClient

Models = dict[str, FakeClient]

STREAM = "/v2/models/words/generate_stream"
GENERATE = "/v2/models/words/generate"


def events_of(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *frames, end = answer.text.split("\n\n")
    assert end == ""
    assert all(frame.startswith("data: ") and len(frame.splitlines()) == 1 for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_every_result_is_an_event(web: httpx.Client, models: Models) -> None:
    models["words"].results = 3
    answer = web.post(STREAM, content=json.dumps({"text_input": "hé\u2028", "id": "7", "other": True}))
    one = {"id": "7", "model_name": "words", "model_version": "1", "text_output": "hé\u2028"}
    assert events_of(answer) == [one] * 3
    assert "[DONE]" not in answer.text


def test_no_result_is_an_empty_stream(web: httpx.Client, models: Models) -> None:
    models["words"].results = 0
    assert events_of(web.post(STREAM, json={"text_input": "a"})) == []


@pytest.mark.parametrize(("results", "status"), [(0, 400), (1, 200), (2, 400)])
def test_generate_wants_one_result(web: httpx.Client, models: Models, results: int, status: int) -> None:
    models["words"].results = results
    answer = web.post(GENERATE, json={"text_input": ["a"], "parameters": {"count": 2, "temperature": 0.5}})
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {"model_name": "words", "model_version": "1", "text_output": "a"}
        assert models["words"].seen is not None
        assert models["words"].seen.inputs.keys() == {"text_input", "count"}
    else:
        assert "exactly 1 response" in answer.json()["error"]


def test_shapes_are_those_of_the_model(web: httpx.Client, models: Models) -> None:
    answer = web.post("/v2/models/org/slash.v1-x/generate", json={"IN": [1, 2, 3, 4, 5, 6]})
    assert answer.json()["OUT"] == [1, 2, 3, 4, 5, 6]
    assert models["org/slash.v1-x"].seen is not None
    assert models["org/slash.v1-x"].seen.inputs["IN"].shape == (2, 3)
    answer = web.post("/v2/models/pair/generate", json={"IN": [1, 2], "IN2": 7})
    assert answer.json()["OUT2"] == 7


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The document is empty"),
        (b"[]", "no object"),
        (b'{"text_input":NaN}', "attempt to access JSON non-string as string"),
        (b'{"text_input":"a","x":1e400}', "1e400 is too large for a number"),
        (b'{"text_input":"a","x":18446744073709551616}', "parameter 'x' is no whole number of 64 bits"),
        (b'{"text_input":"\\ud800"}', "The surrogate pair in string is invalid"),
        (b'{"text_input":"a","id":"\\ud800"}', "The surrogate pair in string is invalid"),
        (b'{"text_input":"a","\\udfff":1}', "The surrogate pair in string is invalid"),
        ({"text_input": "a", "parameters": {"text_input": "b"}}, "input 'text_input' already exists in request"),
        (b'{"text_input":"a","text_input":"b"}', "input 'text_input' already exists in request"),
        ({}, "expected number of inputs between 1 and 2 but got 0"),
        ({"text_input": 3}, "attempt to access JSON non-string as string"),
        ({"text_input": "a", "count": "x"}, "attempt to access JSON non-signed-integer as signed-integer"),
        ({"text_input": ["a", "b"]}, "The schema can not convert input 'text_input' to tensor with proper shape"),
        ({"text_input": "a", "x": [1]}, "parameter 'x' has invalid type"),
        ({"text_input": "a", "parameters": 3}, "Expected JSON object for keyword: 'parameters'"),
        ({"text_input": "a", "id": 3}, "Unable to parse 'id'"),
        (b'{"text_input":' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
    ],
)
def test_requests_that_are_wrong_have_no_stream(web: httpx.Client, path: str, body: Any, message: str) -> None:
    answer = web.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert message in answer.json()["error"]


def test_a_failure_after_results_is_an_event(web: httpx.Client, models: Models) -> None:
    models["words"].results, models["words"].error = 2, InferenceError("it broke", Code.INTERNAL)
    answer = web.post(STREAM, json={"text_input": "a"})
    assert answer.status_code == 200
    assert [each.get("error") for each in events_of(answer)] == [None, None, "it broke"]


def test_a_failure_before_results_has_a_status(web: httpx.Client, models: Models) -> None:
    models["words"].results, models["words"].error = 0, InferenceError("it broke", Code.INTERNAL)
    answer = web.post(STREAM, json={"text_input": "a"})
    assert (answer.status_code, events_of(answer)) == (500, [{"error": "it broke"}])


def test_infer_stream_is_infer_with_events(web: httpx.Client, models: Models) -> None:
    models["words"].results = 2
    body = {"id": "x", "inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
    found = events_of(web.post("/v2/models/words/infer_stream", json=body))
    assert (
        found
        == [
            {
                "id": "x",
                "model_name": "words",
                "model_version": "1",
                "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
            }
        ]
        * 2
    )
    answer = web.post("/v2/models/words/infer", json=body)
    assert answer.status_code == 501
    assert "decoupled transaction policy" in answer.json()["error"]
