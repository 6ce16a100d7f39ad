"""Fields that an API does not have: named in a header, and refused where an answer without them would be wrong."""

import logging
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo.server.dialects.openai_chat import ChatCompletionRequest
from octavo.server.errors import ApiError
from octavo.server.schema.unknown import unknown_fields
from tests.properties import examples
from tests.server.conftest import eventually
from tests.server.fake import FakeEngine

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {"prompt": "hi", "max_tokens": 3},
    "/generate": {"prompt": "hi", "max_tokens": 3},
    "/tokenize": {"prompt": "hi"},
}
CONSTRAINTS = (
    "guided_decoding_backend",
    "guidedJson",
    "grammar_type",
    "json_mode",
    "responseFormat",
    "response_fromat",
    "structured_output",
    "structred_outputs",
    "output_schema",
    "regexp",
    "gbnf",
    "stop_pattern",
    "allowed_token_id",
    "bad_word",
)


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_header_names_them(http: httpx.Client, route: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    body = BODIES[route] | ({"stream": True} if stream and route != "/tokenize" else {})
    plain = http.post(route, json=body | {"unheard_of": None})
    assert plain.status_code == 200
    assert "x-octavo-warning" not in plain.headers
    with caplog.at_level(logging.INFO, "octavo.server"):
        answer = http.post(route, json=body | {"modle": "x", "unheard_of": {"a": [1]}, "mirostat": 2})
        assert answer.status_code == 200
        warning = "unknown fields ignored: modle (did you mean 'model'?), unheard_of, mirostat"
        assert answer.headers["x-octavo-warning"] == warning
        line = f"{warning} (request {answer.headers['x-request-id']})"
        eventually(lambda: line in [record.getMessage() for record in caplog.records])


def test_what_is_meant_is_said(http: httpx.Client) -> None:
    body = BODIES["/v1/chat/completions"] | {"temprature": 0, "best_of": 2, "max_new_tokens": 5, "thinking": True}
    warning = http.post("/v1/chat/completions", json=body).headers["x-octavo-warning"]
    assert warning.startswith("unknown fields ignored: temprature (did you mean 'temperature'?), best_of, ")
    assert warning.endswith(", thinking")


def test_fields_that_change_nothing_are_known(http: httpx.Client) -> None:
    fields = {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "k",
        "verbosity": "low",
        "length_penalty": 1.0,
    }
    answer = http.post("/v1/chat/completions", json=BODIES["/v1/chat/completions"] | fields)
    assert answer.status_code == 200
    assert "x-octavo-warning" not in answer.headers


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_what_looks_like_a_constraint_is_refused(http: httpx.Client, engine: FakeEngine, route: str, name: str) -> None:
    answer = http.post(route, json=BODIES[route] | {name: {}})
    assert answer.status_code == 400
    message = answer.json()["detail" if route == "/generate" else "error"]
    assert f"'{name}'" in str(message)
    assert "structured_outputs" in str(message)
    assert engine.requests == []
    assert http.post(route, json=BODIES[route] | {name: None}).status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, "response_format"),
        ("/v1/responses", {"input": "hi"}, "text.format"),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}, "output_config.format"),
    ],
)
def test_what_is_refused_names_the_field_of_its_api(
    http: httpx.Client, route: str, body: dict[str, Any], field: str
) -> None:
    answer = http.post(route, json=body | {"json_mode": True})
    assert answer.status_code == 400
    assert f"constraints are set with {field} or structured_outputs" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}},
            "response_format.json_schema.shema",
        ),
        ({"structured_outputs": {"json": {}, "regx": "a"}}, "structured_outputs.regx"),
    ],
)
def test_members_of_constraints_are_all_known(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json=BODIES["/v1/completions"] | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_other_words_with_these_letters_are_none(http: httpx.Client) -> None:
    answer = http.post("/generate", json=BODIES["/generate"] | {"client_information": 1})
    assert answer.headers["x-octavo-warning"] == "unknown fields ignored: client_information"


def test_tokenizing_takes_a_whole_request(http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "response_format": {"type": "json_object"}}
    assert http.post("/tokenize", json=body).status_code == 200


def test_too_many(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=BODIES["/v1/completions"] | {f"x{n}": n for n in range(65)})
    assert answer.status_code == 400
    assert "65 fields" in answer.json()["error"]["message"]


@examples(200, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=200).filter(lambda name: "\ud800" not in name), st.integers(), max_size=64))
def test_the_header_is_bounded_and_plain(fields: dict[str, int]) -> None:
    try:
        warning = unknown_fields(ChatCompletionRequest, fields)
    except ApiError as error:
        warning = error.detail
    assert len(warning) < 1200
    assert warning.isascii()
    assert warning.isprintable()


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_parts_that_are_no_text(http: httpx.Client, kind: str) -> None:
    content = [{"type": "text", "text": "hi"}, {"type": kind, kind: {"url": "data:,", "data": ""}}]
    answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[1].type"
    assert f'parts of type "{kind}" are not supported' in answer.json()["error"]["message"]
