"""Answers in channels, as gpt-oss writes them: what is said keeps to what was asked for, what is thought is free."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from octavo.grammar.matcher import compile_grammar
from octavo.server.settings import ServerSettings
from octavo.text.answer import AnswerFormat
from octavo.text.formats.harmony import Harmony
from tests.server.fake import FakeEngine, make_tokenizer, running, served

MESSAGES = [{"role": "user", "content": "How warm is it?"}]
SCHEMA = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}
TAG = {"type": "tag", "begin": "<d>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</d>"}
TOOL = {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"enum": ["here", "there"]}}}}


@dataclass
class Babbler:
    """A model that knows nothing but the grammar that it is held to.

    Attributes:
        engine: what it speaks through. said: all that it has said.
    """

    engine: FakeEngine
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokenizer = self.engine.tokenizer
        self._vocabulary = tokenizer.vocabulary(tokenizer.vocab_size)
        self._opened = self._vocabulary.open()

    def __call__(self, prompt: str, index: int) -> str:
        state = compile_grammar(self._opened, self.engine.requests[-1].params.grammar)
        chance = random.Random(len(self.said))
        tokens: list[int] = []
        words = -(-len(self._vocabulary.tokens) // 32)
        while len(tokens) < 300:
            mask = np.zeros((1, words), np.uint32)
            state.raw.unsafe_compute_mask_ptr(mask.ctypes.data, words * 4)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
            if self._vocabulary.ends[0] in allowed:
                break
            marks = [token for token in allowed if token in self._vocabulary.special]
            closing = [token for token in allowed if self._vocabulary.tokens[token] in (b'"', b"}")]
            likely = next((some for some in (marks, closing) if some and chance.random() < 0.2), allowed)
            tokens.append(chance.choice(likely))
            if state.advance([tokens[-1]], 0).complete:
                break
        self.said.append(self.engine.tokenizer.decode(tokens, skip_special_tokens=False))
        return self.said[-1]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Babbler:
    engine = FakeEngine(make_tokenizer(tmp_path_factory.mktemp("harmony"), special=Harmony.markers))
    engine.reply = babbler = Babbler(engine)
    return babbler


@pytest.fixture(scope="module")
def channels(babbler: Babbler) -> Iterator[str]:
    model = served(babbler.engine, answers=AnswerFormat.of(None, "gpt_oss", "openai"))
    with running(ServerSettings(), model) as url:
        yield url


WANTED: list[tuple[str, dict[str, Any]]] = [
    ("json", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
    ("json", {"structured_outputs": {"json": SCHEMA}}),
    ("json", {"structured_outputs": {"grammar": 'root ::= "{\\"degrees\\": " [0-9] "}"'}}),
    ("tag", {"structured_outputs": {"structural_tag": {"format": TAG}}}),
]


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize(("kind", "wanted"), WANTED)
def test_the_answer_keeps_to_what_is_asked_for(
    channels: str, babbler: Babbler, kind: str, wanted: dict[str, Any], tools: bool
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 400} | wanted
    if tools:
        body["tools"] = [{"type": "function", "function": TOOL}]
    answered = thought = called = 0
    for _ in range(12):
        answer = httpx.post(f"{channels}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        if calls := message.get("tool_calls"):
            assert tools
            for call in calls:
                jsonschema.validate(json.loads(call["function"]["arguments"]), TOOL["parameters"])
            called += 1
        elif message["content"]:  # else it has thought too long
            said = message["content"]
            if kind == "tag":
                assert (said[:3], said[-4:]) == ("<d>", "</d>")
                said = said[3:-4]
            jsonschema.validate(json.loads(said), SCHEMA)
            answered += 1
            thought += bool(message.get("reasoning_content"))
    assert answered
    assert thought
    assert bool(called) == tools


def test_in_the_other_apis(channels: str, babbler: Babbler) -> None:
    form = {"type": "json_schema", "name": "it", "schema": SCHEMA}
    answered = 0
    for _ in range(8):
        body: dict[str, Any] = {"input": "How warm is it?", "text": {"format": form}, "max_output_tokens": 400}
        answer = httpx.post(f"{channels}/v1/responses", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        texts = [item["content"][0]["text"] for item in answer.json()["output"] if item["type"] == "message"]
        output = {"format": {"type": "json_schema", "schema": SCHEMA}}
        body = {"messages": MESSAGES, "max_tokens": 400, "output_config": output}
        answer = httpx.post(f"{channels}/v1/messages", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        texts += [block["text"] for block in answer.json()["content"] if block["type"] == "text"]
        for text in filter(None, texts):
            jsonschema.validate(json.loads(text), SCHEMA)
            answered += 1
    assert answered
