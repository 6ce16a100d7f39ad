"""Fields beyond OpenAI's: what of them reaches the engine, and what is refused before."""

from typing import Any

import httpx
import pytest

from octavo.text import Tokenizer
from tests.server.fake import FakeEngine

COMPLETION = {"prompt": "What is", "max_tokens": 2}


def test_bad_words_in_every_spelling(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    words = ["France", "the", " capital", "größer", "é"]
    assert http.post("/v1/completions", json=COMPLETION | {"bad_words": words}).status_code == 200
    spelled = engine.requests[-1].params.bad_words
    texts = {tokenizer.decode(ids) for ids in spelled}
    assert texts == {way for word in map(str.strip, words) for way in (word, f" {word}")}
    for text in texts:
        assert tuple(tokenizer.encode(text, add_special_tokens=False)) in spelled
    assert len(set(spelled)) == len(spelled)


def test_allowed_tokens(http: httpx.Client, engine: FakeEngine) -> None:
    body = COMPLETION | {"allowed_token_ids": [5, 9, 5], "min_tokens": 1, "stop_token_ids": [9]}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert engine.requests[-1].params.allowed_token_ids == (5, 9, 5)
    assert http.post("/generate", json=COMPLETION | {"allowed_token_ids": [5]}).status_code == 200
    assert engine.requests[-1].params.allowed_token_ids == (5,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allowed_token_ids": [7, 9], "bad_words": ["%7", "%9"]}, "'allowed_token_ids' together with 'bad_words'"),
        ({"allowed_token_ids": [7], "min_tokens": 1, "stop_token_ids": [7]}, "together with 'min_tokens' leaves no"),
    ],
)
def test_nothing_left_to_draw(
    http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, fields: dict[str, Any], message: str
) -> None:
    words = [tokenizer.token_text(int(word[1:])) for word in fields.get("bad_words", [])]
    answer = http.post("/v1/completions", json=COMPLETION | fields | {"bad_words": words})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "allowed_token_ids"
    assert engine.requests == []
