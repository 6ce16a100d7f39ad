"""What a conversation becomes, with nothing generated."""

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


def test_templates_of_requests(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
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
    trusting = served(engine, trust_request_chat_template=True)
    with running(ServerSettings(), trusting) as url, httpx.Client(base_url=url) as client:
        plain, shown, wrong, long = (client.post(f"{CHAT}/render", json=body) for body in bodies)
        answered = client.post(CHAT, json=own | {"documents": DOCUMENTS})
    assert plain.json()["prompt"] == "<|im_start|>user: What is <|im_end|> in France?"
    assert shown.json()["prompt"].endswith("<|im_start|>Geography: Paris is <|im_end|> on the Seine.")
    [end] = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert end not in shown.json()["token_ids"]
    assert answered.status_code == 200
    assert engine.requests[-1].prompt_token_ids == shown.json()["token_ids"]
    for answer, said in ((wrong, "not valid Jinja"), (long, "takes more than it may")):
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


def test_documents_that_the_template_does_not_show_are_refused(http: httpx.Client) -> None:
    answer = http.post(f"{CHAT}/render", json={"messages": [QUESTION], "documents": DOCUMENTS})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")
