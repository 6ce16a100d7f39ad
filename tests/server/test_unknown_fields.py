"""Fields that an API does not have: named in a header, and refused where an answer without them would be wrong."""

import logging
import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo.server.dialects import DIALECTS
from octavo.server.dialects.openai_chat import ChatCompletionRequest
from octavo.server.errors import ApiError
from octavo.server.schema.responses import ResponsesRequest
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
    "regx",
    "gramar",
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
    body = BODIES["/v1/chat/completions"] | {"temprature": 0, "best_of": 2, "num_predict": 5, "thinking": True}
    warning = http.post("/v1/chat/completions", json=body).headers["x-octavo-warning"]
    assert warning.startswith("unknown fields ignored: temprature (did you mean 'temperature'?), best_of, ")
    assert warning.endswith(", thinking")


APIS = {dialect.path: dialect.body for dialect in DIALECTS} | {"/v1/responses": ResponsesRequest}
MOVED = [(route, old, names) for route, body in APIS.items() for old, names in body.moved.items()]
PLAIN = BODIES | {"/v1/messages": BODIES["/v1/chat/completions"], "/v1/responses": {"input": "hi"}}


@pytest.mark.parametrize(("route", "old", "names"), MOVED)
def test_a_field_of_another_api_is_refused_with_the_one_that_is_meant(
    http: httpx.Client, route: str, old: str, names: tuple[str, ...]
) -> None:
    body = PLAIN[route]
    answer = http.post(route, json=body | {old: 7})
    assert answer.status_code == 400
    assert f"'{old}'" in answer.text
    assert f"this API has {' or '.join(map(repr, names))} instead" in answer.text
    for nothing in ([], "", None) if old != "response_format" else ():
        assert http.post(route, json=body | {old: nothing}).status_code == 200


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/chat/completions", {"max_tokens": 3, "max_new_tokens": 3}),
        ("/v1/chat/completions", {"max_completion_tokens": 3, "max_output_tokens": 3}),
        ("/v1/chat/completions", {"stop": ["a"], "stop_sequences": "a"}),
        ("/v1/messages", {"stop_sequences": ["a"], "stop": "a"}),
        ("/v1/messages", {"output_config": {"effort": "low"}, "reasoning_effort": "low"}),
        ("/v1/responses", {"reasoning": {"effort": "low"}, "reasoning_effort": "low"}),
        ("/v1/responses", {"max_output_tokens": 3, "max_tokens": 3}),
        ("/generate", {"inputs": "hi"}),
    ],
)
def test_a_field_of_another_api_may_say_the_same(http: httpx.Client, route: str, fields: dict[str, Any]) -> None:
    assert http.post(route, json=PLAIN[route] | fields).status_code == 200
    last = next(reversed(fields))
    assert http.post(route, json=PLAIN[route] | fields | {last: "other"}).status_code == 400


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
        warning = unknown_fields(ChatCompletionRequest.model_validate({"messages": MESSAGES}), fields)
    except ApiError as error:
        warning = error.detail
    assert len(warning) < 1200
    assert warning.isascii()
    assert warning.isprintable()


FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {"format": {"type": "string"}}}}
APIS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}),
    "text": ("/v1/completions", {"prompt": "hi", "max_tokens": 3}),
    "responses": ("/v1/responses", {"input": "hi", "max_output_tokens": 3, "store": False}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}),
    "count": ("/v1/messages/count_tokens", {"messages": MESSAGES}),
}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
MEMBERS: list[tuple[str, dict[str, Any], str]] = [
    (
        "chat",
        {"tools": [{"type": "function", "function": FUNCTION | {"params": {"format": 1}}}], "tool_choice": "none"},
        "tools[0].function.params (did you mean 'tools[0].function.parameters'?)",
    ),
    (
        "chat",
        {"tools": [{"type": "function", "function": {"name": f"f{n}", "note": n}} for n in range(128)]},
        "tools[0].function.note",
    ),
    ("chat", {"tools": [{"type": "function", "function": FUNCTION, "kind": "x"}]}, "tools[0].kind"),
    (
        "chat",
        {"stream": True, "stream_options": {"include_usge": True}},
        "stream_options.include_usge (did you mean 'stream_options.include_usage'?)",
    ),
    (
        "chat",
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f", "nme": "g"}},
        },
        "tool_choice.function.nme (did you mean 'tool_choice.function.name'?)",
    ),
    ("text", {"repetition_detection": {"foo": 1}}, "repetition_detection.foo"),
    ("responses", {"reasoning": {"efort": "low"}}, "reasoning.efort (did you mean 'reasoning.effort'?)"),
    ("messages", {"output_config": {"task_budget": 3}}, "output_config.task_budget"),
    ("messages", {"thinking": {"type": "disabled", "budget": 3}}, "thinking.budget"),
    (
        "count",
        {"output_config": {"formt": {}}},
        "output_config.formt (did you mean 'output_config.format'?)",
    ),
    (
        "count",
        {"tools": [{"name": "f", "input_schema": {"type": "object"}, "descripton": "x"}]},
        "tools[0].descripton (did you mean 'tools[0].description'?)",
    ),
    ("chat", {"extra_body": {"top_k": 3}}, "extra_body (what is in 'extra_body' belongs beside the other fields)"),
    ("chat", {"client_metadata": {"format": "x"}}, "client_metadata"),
    ("chat", {"extra_args": {"format": None}}, "extra_args"),
]


@pytest.mark.parametrize(("api", "fields", "warning"), MEMBERS)
def test_a_header_names_members(http: httpx.Client, api: str, fields: dict[str, Any], warning: str) -> None:
    route, body = APIS[api]
    answer = http.post(route, json=body | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-octavo-warning"] == f"unknown fields ignored: {warning}"


REFUSED_MEMBERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("responses", {"text": {"json_schema": SCHEMA}}, "text.json_schema", "text.format"),
    ("responses", {"text": {"fromat": SCHEMA}}, "text.fromat", "did you mean 'text.format'?"),
    ("responses", {"text": {"format": {"type": "json_object", "shema": {}}}}, "text.format.shema", ""),
    (
        "responses",
        {"text": {"format": {"type": "json_schema", "json_schema": SCHEMA}}},
        "text.format.json_schema",
        "belongs beside 'type'",
    ),
    (
        "responses",
        {"tools": [{"type": "function", "name": "f", "input_schema": {"type": "object"}}]},
        "tools[0].input_schema",
        "set with tools[0].parameters",
    ),
    (
        "chat",
        {"tools": [{"type": "function", "function": {"name": "f", "inputSchema": {"type": "object"}}}]},
        "tools[0].function.inputSchema",
        "set with tools[0].function.parameters",
    ),
    ("messages", {"output_config": {"json_schema": SCHEMA}}, "output_config.json_schema", "output_config.format"),
    ("messages", {"output_config": {"formt": {}}}, "output_config.formt", "did you mean 'output_config.format'?"),
    # Of another API, or of none.
    ("chat", {"output_config": {"format": SCHEMA}}, "output_config.format", "response_format"),
    ("chat", {"text": {"format": SCHEMA}}, "text.format", "response_format"),
    ("chat", {"extra_body": {"guided_json": {}}}, "extra_body.guided_json", "belongs beside the other fields"),
    ("chat", {"extra_body": {"guided_json": {}}}, "extra_body.guided_json", "structured_outputs.json"),
    ("chat", {"nvext": {"guided_regex": "a"}}, "nvext.guided_regex", "structured_outputs.regex"),
    ("chat", {"a": {"b": {"json_schema": {}}}}, "a.b.json_schema", "structured_outputs.json"),
    ("text", {"options": {"respones_fromat": SCHEMA}}, "options.respones_fromat", "structured_outputs"),
    ("responses", {"output_config": {"format": SCHEMA}}, "output_config.format", "text.format"),
    ("messages", {"text": {"format": SCHEMA}}, "text.format", "output_config.format"),
    ("chat", {"a": {f"x{number}": number for number in range(65)}}, "a", "too many members"),
]


@pytest.mark.parametrize(("api", "fields", "name", "said"), REFUSED_MEMBERS)
def test_members_that_look_like_constraints_are_refused(
    http: httpx.Client, engine: FakeEngine, api: str, fields: dict[str, Any], name: str, said: str
) -> None:
    route, body = APIS[api]
    answer = http.post(route, json=body | fields)
    assert answer.status_code == 400, answer.headers
    error = answer.json()["error"]
    assert f"'{name}'" in error["message"]
    assert said in error["message"]
    if api != "messages":
        assert error["param"] == name
    assert engine.requests == []


def test_what_conversations_and_schemas_consist_of_is_free(http: httpx.Client) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    text: dict[str, Any] = {"type": "text", "text": "hi", "citations": None, "annotations": [], **cached}
    message: dict[str, Any] = {"role": "user", "content": [text], "refusal": None, "audio": None, "format": "x"}
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}, "x-json": 1}
    tool = {"name": "f", "description": "d", "strict": False, "output_schema": schema}
    bodies: dict[str, dict[str, Any]] = {
        "chat": {
            "messages": [message],
            "tools": [{"type": "function", "function": {**tool, "parameters": schema}}],
            "tool_choice": "none",
            "metadata": {"format": "x"},
            "chat_template_kwargs": {"format": {"json": 1}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            "stream": True,
            "stream_options": {"include_usage": True, "include_obfuscation": False},
        },
        "responses": {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi", "format": 1}], "json": 1}],
            "tools": [{"type": "function", **tool, "parameters": schema}],
            "metadata": {"format": "x"},
        },
        "messages": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **cached}]}],
            "system": [{"type": "text", "text": "hi", "format": "x", **cached}],
            "tools": [{"name": "f", "input_schema": schema, "output_schema": schema, **cached}],
        },
    }
    for api, fields in bodies.items():
        route, body = APIS[api]
        answer = http.post(route, json=body | fields)
        assert answer.status_code == 200, answer.text
        assert "x-octavo-warning" not in answer.headers


HINTS = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_json_object": "structured_outputs.json_object",
    "guided_whitespace_pattern": "structured_outputs.whitespace_pattern",
    "json_schema": "structured_outputs.json",
    "response_schema": "structured_outputs.json",
    "jsonSchema": "structured_outputs.json",
    "regex": "structured_outputs.regex",
    "grammar": "structured_outputs.grammar",
    "ebnf": "structured_outputs.grammar",
    "structural_tag": "structured_outputs.structural_tag",
    "bnf": "structured_outputs.grammar",
    "gbnf": "structured_outputs.grammar",
}


@pytest.mark.parametrize(("api", "schema"), [("chat", "response_format"), ("responses", "text.format")])
@pytest.mark.parametrize("name", HINTS)
def test_it_is_said_where_a_constraint_belongs(http: httpx.Client, api: str, schema: str, name: str) -> None:
    route, body = APIS[api]
    answer = http.post(route, json=body | {name: ["a"]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == name
    assert HINTS[name] in error["message"]
    assert (schema in error["message"]) == HINTS[name].startswith("structured_outputs.json")
    assert not re.search("did you mean '(?!response_format)", error["message"])
    assert ("response_format" in error["message"]) <= (api == "chat")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_parts_that_are_no_text(http: httpx.Client, kind: str) -> None:
    content = [{"type": "text", "text": "hi"}, {"type": kind, kind: {"url": "data:,", "data": ""}}]
    answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[1].type"
    assert f'parts of type "{kind}" are not supported' in answer.json()["error"]["message"]
