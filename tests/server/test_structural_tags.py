"""Structural tags through every API: however they are asked for, the engine is given the same grammar."""

import json
from typing import Any

import httpx
import pytest

from octavo.server.settings import ServerSettings
from octavo.text.answer import AnswerFormat
from tests.server.fake import FakeEngine, running, served

MESSAGES = [{"role": "user", "content": "How is the weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LEGACY = {
    "type": "structural_tag",
    "structures": [{"begin": "<function=weather>", "schema": SCHEMA, "end": "</function>"}],
    "triggers": ["<function="],
}
TAG = {
    "type": "tag",
    "begin": "<function=weather>",
    "content": {"type": "json_schema", "json_schema": SCHEMA},
    "end": "</function>",
}
TAGS = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<function="], "tags": [TAG]}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "The weather:"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 20},
    "/v1/responses": {"input": "How is the weather?"},
    "/generate": {"prompt": "The weather:"},
}


def grammar(http: httpx.Client, engine: FakeEngine, url: str, **fields: Any) -> str:
    answer = http.post(url, json=BODIES[url] | {"model": "tiny"} | fields)
    assert answer.status_code == 200, answer.text
    return engine.requests[-1].params.grammar


@pytest.mark.parametrize("path", BODIES)
def test_in_every_api(http: httpx.Client, engine: FakeEngine, path: str) -> None:
    ways: list[dict[str, Any]] = [
        {"structured_outputs": {"structural_tag": value}}
        for each in (LEGACY, TAGS)
        for value in (each, json.dumps(each))
    ]
    if path not in ("/v1/messages", "/v1/responses"):  # which have fields of their own for the shape
        ways += [{"response_format": LEGACY}, {"response_format": TAGS}]
    found = {grammar(http, engine, path, **way) for way in ways}
    assert len(found) == 1
    assert "function=" in "".join(found)
    dense = {"structured_outputs": {"structural_tag": TAGS, "disable_any_whitespace": True}}
    assert grammar(http, engine, path, **dense) not in found
    wrong = {"structured_outputs": {"structural_tag": {"format": {**TAG, "end": 5}}}}
    answer = http.post(path, json=BODIES[path] | wrong)
    assert answer.status_code == 400
    assert "'structured_outputs.structural_tag.format.end'" in answer.text


def test_special_tokens_are_named_by_their_ids(http: httpx.Client, engine: FakeEngine) -> None:
    form = {"type": "sequence", "elements": [{"type": "any_text"}, {**TAG, "begin": "<|im_start|>", "end": "."}]}
    value = {"structural_tag": {"format": form}}
    start = engine.tokenizer.special_texts["<|im_start|>"]
    for url in BODIES:
        assert f"<[{start}]>" in grammar(http, engine, url, structured_outputs=value)
        ended = {"format": {**TAG, "end": "<|im_end|>"}}
        assert '\\"<|im_end|>\\"' in grammar(http, engine, url, structured_outputs={"structural_tag": ended})
    tags = TAGS["format"] | {"triggers": ["<|"], "tags": [{**TAG, "begin": "<|im_start|>"}]}
    for url in BODIES:
        answer = http.post(url, json=BODIES[url] | {"structured_outputs": {"structural_tag": {"format": tags}}})
        assert answer.status_code == 400
        assert "tags[0].begin' cannot be kept to: the trigger '<|' ends within '<|im_start|>'" in answer.text


def test_the_bare_field_tells_where_it_belongs(http: httpx.Client, engine: FakeEngine) -> None:
    for url in BODIES:
        answer = http.post(url, json=BODIES[url] | {"structural_tag": json.dumps(TAGS)})
        assert answer.status_code == 400
        assert "use structured_outputs.structural_tag instead" in answer.text
    assert engine.requests == []


@pytest.mark.parametrize(
    "wanted",
    [
        {"structured_outputs": {"structural_tag": TAGS}},
        {"structured_outputs": {"grammar": 'root ::= "yes"'}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ],
)
def test_behind_reasoning_and_beside_tools(engine: FakeEngine, wanted: dict[str, Any]) -> None:
    function = {"name": "now", "parameters": {"type": "object", "properties": {}}, "strict": True}
    fields = {"tools": [{"type": "function", "function": function}]}
    with running(ServerSettings(), served(engine, answers=AnswerFormat.of(None, "", "hermes", "qwen3"))) as url:
        for more in ({}, fields):
            answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": MESSAGES} | wanted | more, timeout=60)
            assert answer.status_code == 200, answer.text
            grammar = engine.requests[-1].params.grammar
            assert "@answer" in grammar
            assert ("now" in grammar) == bool(more)
