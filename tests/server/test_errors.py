"""Every kind of error: status, body and headers that OpenAI's clients understand."""

import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from octavo.engine.client import EngineState
from octavo.engine.request import Refusal, RequestRefused
from octavo.server.errors import MAX_MESSAGE
from tests.server.conftest import eventually
from tests.server.fake import CONTEXT, MODEL, FakeEngine
from tests.server.sse import events

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a response, whose form is the same whatever went wrong."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(error["message"]) <= MAX_MESSAGE
    assert "Traceback" not in response.text
    return error


def refused(http: httpx.Client, route: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The 400 that a body earns, streamed and not."""
    base = {"messages": MESSAGES} if route == CHAT else {"prompt": "hi"}
    plain = error_of(http.post(route, json=base | fields), 400)
    if not fields.keys() & {"stream", "stream_options", "prompt_logprobs"}:
        assert error_of(http.post(route, json=base | fields | {"stream": True}), 400) == plain
    return plain


def test_unknown_model(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'gpt-9'" in caught.value.message
    assert MODEL in caught.value.message
    for response in (http.get("/v1/models/gpt-9"), http.post("/tokenize", json={"model": "gpt-9", "prompt": "x"})):
        assert error_of(response, 404)["code"] == "model_not_found"


def test_too_long(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    wording = f"This model's maximum context length is {CONTEXT} tokens. However, your messages resulted in 6"
    assert wording in caught.value.message
    error = refused(http, max_tokens=CONTEXT)
    assert error["code"] == "context_length_exceeded"
    assert f"({CONTEXT} in the completion" not in error["message"]
    assert f"{CONTEXT} in the completion)" in error["message"]
    assert refused(http, TEXT, prompt=[1] * CONTEXT)["code"] == "context_length_exceeded"
    assert refused(http, TEXT, prompt=[[1], [1] * (CONTEXT + 1)], max_tokens=1)["code"] == "context_length_exceeded"


def test_what_just_fits(http: httpx.Client) -> None:
    for prompt, fields, tokens in ((CONTEXT - 1, {}, 1), (CONTEXT - 5, {"max_tokens": 5, "ignore_eos": True}, 5)):
        answer = http.post(TEXT, json={"prompt": [5] * prompt} | fields)
        assert answer.json()["usage"]["completion_tokens"] == tokens
    echo = {"prompt": [5] * CONTEXT, "max_tokens": 0, "echo": True, "logprobs": 1}
    assert http.post(TEXT, json=echo).status_code == 200


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOL = tool({"type": "object"})
FORMAT_SCHEMA = "response_format.json_schema.schema"


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def structural_tag(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "structural_tag", "format": {"type": "tag", "begin": "<", "content": content, "end": ">"}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [}',
        b"nonsense",
        b'{"temperature": NaN}',
        b'{"a": 1e999}',
        b"[" * 5000,
        b'{"a": "\\ud800"}',
    ],
)
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    error = error_of(http.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)
    assert error["type"] == "invalid_request_error"
    assert "body" in error["message"]


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b'{"a": "' + b"x" * 2_000_000 + b'\xff"}'], ids=["small", "large"])
def test_a_body_that_is_not_utf_8(http: httpx.Client, body: bytes) -> None:
    error = error_of(http.post(TEXT, content=body, headers={"content-type": "application/json"}), 400)
    assert f"not UTF-8 (invalid start byte at byte {body.index(0xFF)})" in error["message"]


@pytest.mark.parametrize("body", ["[]", '"x"', "1", "1.5", "true", "null"])
def test_body_that_is_no_object(http: httpx.Client, body: str) -> None:
    error = error_of(http.post(TEXT, content=body, headers={"content-type": "application/json"}), 400)
    assert "must be a JSON object, not" in error["message"]


def test_content_type(http: httpx.Client) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "", "json"):
        response = http.post(CHAT, content=body, headers={"content-type": content_type})
        assert "Content-Type" in error_of(response, 400)["message"]
    for content_type in (
        "application/json",
        "application/json; charset=utf-8",
        "application/vnd.x+json",
        "Application/JSON",
    ):
        assert http.post(CHAT, content=body, headers={"content-type": content_type}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "text"}]}]}, "messages[1].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection"),
        ({"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}, "repetition_detection"),
        (
            {"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}},
            "repetition_detection",
        ),
        ({"repetition_detection": {"max_pattern_size": 1025, "min_count": 2}}, "repetition_detection.max_pattern_size"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(65_537)}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "6": True}}, "logit_bias.6"),
        ({"logit_bias": {"5": 1, "6": "1"}}, "logit_bias.6"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"cache_salt": "x" * 129}, "cache_salt"),
        ({"priority": 2**40}, "priority"),
        ({"messages": [*MESSAGES, {"role": "user", "content": "x", **{str(n): n for n in range(63)}}]}, "messages[1]"),
        ({"messages": [*MESSAGES, {"role": {}, "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"chat_template_kwargs": {str(n): n for n in range(257)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs.continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "messages"),
        # What would constrain or change the answer and is not supported.
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format"),
        ({"response_format": schema_format({"items": {"not": {}}})}, f"{FORMAT_SCHEMA}.items"),
        ({"response_format": schema_format({"x-guidance": {"lenient": True}})}, FORMAT_SCHEMA),
        ({"response_format": schema_format({"anyOf": [{"const": n} for n in range(20_000)]})}, FORMAT_SCHEMA),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"response_format": {"type": "json_object", "format": {}}}, "response_format"),
        ({"response_format": {"type": "structural_tag", "format": {"type": "x"}}}, "response_format.format.type"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.structures"),
        ({"response_format": structural_tag({"not": {}})}, "response_format.format.content.json_schema"),
        ({"structural_tag": structural_tag({})}, "structural_tag"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": named("g")}, "tool_choice.function.name"),
        ({"tools": [TOOL] * 5000}, "tools"),
        ({"tools": [tool({"type": "array"})]}, "tools[0].function.parameters.type"),
        ({"tools": [tool({"not": {}})], "tool_choice": "required"}, "tools[0].function.parameters"),
        ({"tools": [TOOL], "functions": [{"name": "f"}]}, None),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": ""}]}, "functions[0].name"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"guided_json": {}}, "guided_json"),
        ({"json_schema": {}}, "json_schema"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"thinking_token_budget": 0.5}, "thinking_token_budget"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"guided_grammar": "x"}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"properties": {"a": {"if": {}}}}}}, "structured_outputs.json.properties.a"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"structural_tag": {"format": {"type": "regex", "pattern": "("}}}},
         "structured_outputs.structural_tag.format.pattern"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"bad_words": "x"}, "bad_words"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": ["x"] * 257}, "bad_words"),
        ({"bad_words": ["x" * 129]}, "bad_words[0]"),
        ({"allowed_token_ids": [100_000]}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"allowed_token_ids": [1.5]}, "allowed_token_ids"),
        ({"allowed_token_ids": [5] * 65_537}, "allowed_token_ids"),
        ({"allowed_token_ids": [2], "min_tokens": 1}, "allowed_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": CONTEXT + 1}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": CONTEXT, "messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
        ({"truncation_side": "up"}, "truncation_side"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"documents": [{"text": "x"}]}, "documents"),
    ],
)  # fmt: skip
def test_chat_field_errors(http: httpx.Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    assert refused(http, **fields)["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[5], [6, 10**30]]}, "prompt"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": ["x"] * 600, "n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_text_field_errors(http: httpx.Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    assert refused(http, TEXT, **fields)["param"] == param
    assert engine.requests == []


def test_choices_that_no_empty_queue_would_take_are_refused_for_good(http: httpx.Client, engine: FakeEngine) -> None:
    assert engine.info is not None
    engine.info = replace(engine.info, max_num_seqs=2, max_num_queued_reqs=3)
    assert http.post(TEXT, json={"prompt": ["a"] * 5, "max_tokens": 1}).status_code == 200
    error = refused(http, TEXT, prompt=["a"] * 6)
    assert error["param"] == "prompt"
    assert error["message"].startswith(
        "6 prompts with 1 choices each are more than the 5 choices that can run and wait"
    )
    assert refused(http, TEXT, prompt=["a"] * 3, n=2)["param"] == "n"


def test_long_mistakes_earn_short_answers(http: httpx.Client) -> None:
    body = {"prompt": ["x" * 10] * 5000 + [1]}
    assert len(http.post(TEXT, json=body).content) < 2000
    many = {"messages": [{"role": "x" * 1000, "content": [{"type": "y" * 1000}] * 100}] * 50}
    assert len(http.post(CHAT, json=many).content) < 2000
    assert len(http.get("/" + "x" * 20_000).content) < 2000


def test_routes_and_methods(http: httpx.Client) -> None:
    assert "GET /v3/nothing" in error_of(http.get("/v3/nothing"), 404)["message"]
    assert error_of(http.post("/v1/chat/completions/", json={}), 404)
    assert "GET /v1/models/" in error_of(http.get("/v1/models/"), 404)["message"]
    for method, path, allowed in (
        ("GET", CHAT, "OPTIONS, POST"),
        ("PUT", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ):
        response = http.request(method, path)
        assert error_of(response, 405)
        assert response.headers["allow"] == allowed


def test_overload(client: openai.OpenAI, http: httpx.Client, engine: FakeEngine) -> None:
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "the queue is full: 9 of 9 requests", 12.3)
    for extra in ({}, {"stream": True}):
        response = http.post(CHAT, json={"messages": MESSAGES} | extra)
        error = error_of(response, 429)
        assert error["code"] == "rate_limit_exceeded"
        assert "the queue is full" in error["message"]
        assert response.headers["retry-after"] == "13"
    engine.refuse.retry_after = 1e9
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "120"


def test_clients_retry_after_overload(
    client: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK waits as long as it is told, tries again and succeeds."""
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "the queue is full", 2.5)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        engine.refuse = None

    with monkeypatch.context() as patch:
        patch.setattr("openai._base_client.time.sleep", wait)
        answer = client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].finish_reason == "stop"
    assert waits == [3.0]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("?stream=true&starting_after=-2", "starting_after"),
        ("?stream=perhaps", "stream"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=x&order=asc", "limit"),
        ("/input_items?order=up", "order"),
    ],
)
def test_a_wrong_parameter_of_a_query_is_named(http: httpx.Client, query: str, name: str) -> None:
    error = error_of(http.get(f"/v1/responses/x{query}"), 400)
    assert error["param"] == name
    assert error["message"].startswith(f"Invalid '{name}': ")


@pytest.mark.parametrize("name", ["a b", "a\n", "\x7f", "ä", "\u2028"])
def test_request_ids_are_one_plain_word(http: httpx.Client, engine: FakeEngine, name: str) -> None:
    assert refused(http, request_id=name)["param"] == "request_id"
    assert engine.requests == []
    assert http.post(CHAT, json={"messages": MESSAGES, "request_id": "~a!"}).json()["id"].endswith("-~a!")


WHITESPACE = {"whitespace_pattern": " ?", "disable_any_whitespace": True}


@pytest.mark.parametrize("kind", [{"regex": "a+"}, {"choice": ["a"]}, {"grammar": 'root ::= "a"'}])
@pytest.mark.parametrize("about", WHITESPACE)
def test_whitespace_is_about_json(http: httpx.Client, engine: FakeEngine, kind: dict[str, Any], about: str) -> None:
    error = refused(http, structured_outputs=kind | {about: WHITESPACE[about]})
    assert error["param"] == f"structured_outputs.{about}"
    assert next(iter(kind)) in error["message"]
    assert engine.requests == []
    nothing = {"whitespace_pattern": None, "disable_any_whitespace": False}
    assert http.post(TEXT, json={"prompt": "hi", "structured_outputs": kind | nothing}).status_code == 200
    json = {"json": {"type": "integer"}, about: WHITESPACE[about]}
    assert http.post(TEXT, json={"prompt": "hi", "structured_outputs": json}).status_code == 200
    assert refused(http, structured_outputs=json | WHITESPACE)["param"] == "structured_outputs.whitespace_pattern"


def test_never_fits(http: httpx.Client, engine: FakeEngine) -> None:
    engine.refuse = RequestRefused(Refusal.TOO_LONG, "9 prompt tokens need 10 pages, but there are 3")
    error = refused(http)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(f"This model's maximum context length is {CONTEXT} tokens. However, 9 prompt")


def test_loading(http: httpx.Client, engine: FakeEngine) -> None:
    engine.state, engine.info = EngineState.LOADING, None
    response = http.post(CHAT, json={"messages": MESSAGES})
    assert "loading" in error_of(response, 503)["message"]
    assert int(response.headers["retry-after"]) >= 1


def test_failed_engine(http: httpx.Client, engine: FakeEngine) -> None:
    engine.state, engine.failure = EngineState.FAILED, "it broke"
    response = http.post(CHAT, json={"messages": MESSAGES})
    assert "it broke" in error_of(response, 503)["message"]
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_engine_fails_before_the_first_token(client: openai.OpenAI, http: httpx.Client, engine: FakeEngine) -> None:
    engine.fail_after = 0
    for extra in ({}, {"stream": True}, {"stream": True, "n": 3}):
        response = http.post(CHAT, json={"messages": MESSAGES} | extra)
        assert error_of(response, 500)["type"] == "server_error"
        assert response.headers["x-should-retry"] == "false"
    engine.requests.clear()
    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert len(engine.requests) == 1  # the SDK obeys x-should-retry


def test_engine_fails_in_the_middle(client: openai.OpenAI, http: httpx.Client, engine: FakeEngine) -> None:
    engine.fail_after = 3
    assert error_of(http.post(CHAT, json={"messages": MESSAGES}), 500)
    response = http.post(CHAT, json={"messages": MESSAGES, "stream": True})
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert len(chunks) == 4
    assert last["error"]["type"] == "server_error"
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="it was lost"):
        list(stream)


def test_one_failure_ends_all_prompts_of_a_request(http: httpx.Client, engine: FakeEngine) -> None:
    engine.capacity = 2
    engine.hold = True
    response = http.post(TEXT, json={"prompt": ["a", "b", "c"]})
    assert error_of(response, 429)
    eventually(lambda: not engine.ledger)
    assert engine.aborts == {None: 2}


def test_a_bug_in_the_server(http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever we did not think of: one 500 without a stack, one failed stream, and the server goes on."""

    def broken(*args: Any) -> Any:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("octavo.deployments.choice.Choice.push", broken)
        response = http.post(CHAT, json={"messages": MESSAGES})
        error_of(response, 500)
        assert "secret" not in response.text
        assert response.headers["x-should-retry"] == "false"
    whole = http.post(CHAT, json={"messages": MESSAGES, "stream": True})
    assert whole.status_code == 200
    eventually(lambda: not engine.ledger)


def test_a_path_cannot_end_a_line_of_the_log(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError

    with caplog.at_level(logging.ERROR):
        monkeypatch.setattr("octavo.server.context.Server.any_named", broken)
        error_of(http.get("/v1/models/a%0dERROR"), 500)
    assert [message.startswith("GET /v1/models/a%0dERROR failed") for message in caplog.messages] == [True]


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for unusable in ("x" * 129, "a b", "é"):
        made = http.get("/nope", headers={"x-request-id": unusable.encode()}).headers["x-request-id"]
        assert len(made) == 32
        assert made.isalnum()
