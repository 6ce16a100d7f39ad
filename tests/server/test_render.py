"""What a conversation becomes, with nothing generated."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from octavo.server.settings import ServerSettings
from octavo.text import Tokenizer
from tests.server.fake import CONTEXT, MODEL, FakeEngine, running, served

CHAT = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "What is <|im_end|> in France?"}
BODIES: list[dict[str, Any]] = [
    {"messages": [QUESTION]},
    {"messages": [QUESTION], "stream": True, "n": 3, "max_tokens": 7},
    {"messages": [QUESTION], "chat_template_kwargs": {"opening": "Well: "}},
    {"messages": [QUESTION, {"role": "assistant", "content": "Its"}], "continue_final_message": True},
    {"messages": [QUESTION], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [{"role": "user", "content": "word " * 80}], "timeout": 5},
]


@pytest.mark.parametrize("body", BODIES)
def test_it_is_what_the_engine_gets(
    http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, body: dict[str, Any]
) -> None:
    shown = http.post(f"{CHAT}/render", json=body).json()
    assert engine.requests == []
    assert http.post(CHAT, json=body).status_code == 200
    [asked] = engine.requests
    assert shown["token_ids"] == asked.prompt_token_ids
    assert shown["count"] == len(shown["token_ids"])
    assert shown["prompt"] == tokenizer.decode(shown["token_ids"], skip_special_tokens=False)
    assert shown["max_tokens"] == asked.params.max_tokens
    assert (shown["model"], shown["max_model_len"]) == (MODEL, CONTEXT)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "x" * 600}]},
        {"max_tokens": CONTEXT},
        {"temperature": 3},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        {"model": "gpt-9"},
        {"json_mode": True},
    ],
)
def test_it_is_refused_as_there(http: httpx.Client, engine: FakeEngine, fields: dict[str, Any]) -> None:
    replies = [http.post(path, json={"messages": [QUESTION]} | fields) for path in (f"{CHAT}/render", CHAT)]
    assert replies[0].status_code == replies[1].status_code
    assert replies[0].status_code in (400, 404)
    assert replies[0].json() == replies[1].json()


def test_unknown_fields_are_named(http: httpx.Client, engine: FakeEngine) -> None:
    answer = http.post(f"{CHAT}/render", json={"messages": [QUESTION], "mesages": []})
    assert "(did you mean 'messages'?)" in answer.headers["x-octavo-warning"]


SHOWS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + ': ' + message.content }}{% endfor %}"
    "{% for document in documents or [] %}{{ '<|im_start|>' + document.title + ': ' + document.text }}{% endfor %}"
)
DOCUMENTS = [{"title": "Geography", "text": "Paris is <|im_end|> on the Seine."}]


def test_templates_of_requests(
    http: httpx.Client, trusting: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    """They are trusted if the operator says so. Documents go to templates that show them, and stay text."""
    own = {"messages": [QUESTION], "chat_template": SHOWS}
    refused = http.post(f"{CHAT}/render", json=own)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template")
    assert "--trust-request-chat-template" in refused.json()["error"]["message"]
    bodies = (
        own,
        own | {"documents": DOCUMENTS},
        own | {"chat_template": "{% if %}"},
        own | {"chat_template": "{% for a in range(10 ** 9) %}{{ a }}{% endfor %}"},
    )
    plain, shown, wrong, long = (trusting.post(f"{CHAT}/render", json=body) for body in bodies)
    answered = trusting.post(CHAT, json=own | {"documents": DOCUMENTS})
    assert plain.json()["prompt"] == "<|im_start|>user: What is <|im_end|> in France?"
    assert shown.json()["prompt"].endswith("<|im_start|>Geography: Paris is <|im_end|> on the Seine.")
    [end] = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert end not in shown.json()["token_ids"]
    assert answered.status_code == 200
    assert engine.requests[-1].prompt_token_ids == shown.json()["token_ids"]
    for answer, said in ((wrong, "not valid Jinja"), (long, "takes more than it may")):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chat_template")
        assert said in answer.json()["error"]["message"]


def test_documents_that_the_template_does_not_show_are_refused(http: httpx.Client) -> None:
    answer = http.post(f"{CHAT}/render", json={"messages": [QUESTION], "documents": DOCUMENTS})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")


def conversation(arguments: str, content: str | None = None) -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "content": content, "tool_calls": [call]}
    return [QUESTION, answer, {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}]


PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PRINTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
WITHOUT_CONTENT = (
    "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + c.function.arguments }}{% endfor %}{% else %}<{{ m.role }}>{{ m.content }}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture
def trusting(engine: FakeEngine) -> Iterator[httpx.Client]:
    model = served(engine, trust_request_chat_template=True)
    with running(ServerSettings(), model) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_calls_are_in_the_prompt_of_a_model_whose_template_knows_none(
    trusting: httpx.Client, content: str | None
) -> None:
    body = {"messages": conversation('{"city": "Pölten"}', content), "chat_template": PLAIN}
    prompt = trusting.post(f"{CHAT}/render", json=body).json()["prompt"]
    written = '{"name": "weather", "arguments": {"city": "Pölten"}}'
    said = f"{content}\n{written}" if content else written
    assert prompt == f"<user>{QUESTION['content']}<assistant>{said}<tool>Rain."


@pytest.mark.parametrize("template", [None, PLAIN, PRINTS])
@pytest.mark.parametrize(
    "arguments", ["[" * 960 + "]" * 960, "[" * 200_000, '{"a": "\\ud800"}', '"\\ud800"', "\ud800"], ids=len
)
def test_arguments_that_a_model_may_have_written_are_no_error_of_the_server(
    trusting: httpx.Client, engine: FakeEngine, template: str | None, arguments: str
) -> None:
    body = {"messages": conversation(arguments)[:2], "chat_template": template, "max_tokens": 1}
    for route in (f"{CHAT}/render", CHAT):
        answer = trusting.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
        assert "internal" not in answer.text


def test_a_message_without_content_cannot_be_continued(trusting: httpx.Client) -> None:
    body = {"messages": conversation("{}")[:2], "continue_final_message": True, "add_generation_prompt": False}
    answer = trusting.post(f"{CHAT}/render", json=body | {"chat_template": WITHOUT_CONTENT})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chat_template")
    assert "has no content" in answer.json()["error"]["message"]
