"""Fields beyond OpenAI's: what of them reaches the engine, and what is refused before."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from octavo.engine.request import Refusal, RequestRefused
from octavo.text import Tokenizer
from tests.server.fake import CONTEXT, FakeEngine
from tests.server.sse import events

WITH_USAGE = {"include_usage": True}
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


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_cut(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, side: str) -> None:
    text = "What is the capital of France? " * 80
    ids = tokenizer.encode(text)
    assert len(ids) > CONTEXT
    for wanted, kept in ((1, 1), (40, 40), (CONTEXT - 2, CONTEXT - 2), (-1, CONTEXT - 2)):
        body = {"max_tokens": 2, "truncate_prompt_tokens": wanted, "truncation_side": side}
        expected = ids[-kept:] if side == "left" else ids[:kept]
        for prompt in (text, ids):
            answer = http.post("/v1/completions", json={"prompt": prompt, "echo": True} | body).json()
            assert engine.requests[-1].prompt_token_ids == expected
            assert answer["usage"]["prompt_tokens"] == kept
            assert answer["choices"][0]["text"].startswith(tokenizer.decode(expected))
    short = {"prompt": "What", "truncate_prompt_tokens": 40, "max_tokens": 2}
    assert http.post("/v1/completions", json=short).json()["usage"]["prompt_tokens"] == len(tokenizer.encode("What"))
    chat = {"messages": [{"role": "user", "content": text}], "truncate_prompt_tokens": -1, "max_tokens": 20}
    assert http.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"] == CONTEXT - 20


def test_prompts_beyond_what_can_be_cut(http: httpx.Client, engine: FakeEngine) -> None:
    answer = http.post("/v1/completions", json={"prompt": "word " * 400_000, "truncate_prompt_tokens": 5})
    assert answer.status_code == 400
    assert "262144 tokens" in answer.json()["error"]["message"]


def test_scoring_alone_counts_no_completion(http: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "What is", "max_tokens": 0, "echo": True}
    for extra in ({}, {"logprobs": 3}, {"n": 2}):
        usage = http.post("/v1/completions", json=body | extra).json()["usage"]
        assert usage["completion_tokens"] == 0
        assert usage["total_tokens"] == usage["prompt_tokens"]
        streamed = http.post("/v1/completions", json=body | extra | {"stream": True, "stream_options": WITH_USAGE})
        assert events(streamed.text)[-1]["usage"] == usage


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("count", [-1, 21, 400, 2**40])
def test_no_whole_vocabularies(http: httpx.Client, engine: FakeEngine, field: str, count: int) -> None:
    answer = http.post("/v1/completions", json=COMPLETION | {field: count})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert engine.requests == []


LONG = 32_768
IDLE = {"echo": True, "max_tokens": 1}


@pytest.mark.parametrize(
    ("fields", "param", "fits"),
    [
        ({"prompt": [5] * 7000, "logprobs": 20, "n": 64, **IDLE}, "n", {"n": 7}),
        ({"prompt": [5] * 7000, "prompt_logprobs": 20, "n": 64, "max_tokens": 1}, "n", {"n": 7}),
        ({"prompt": [[5] * 500] * 110, "logprobs": 20, **IDLE}, "logprobs", {"logprobs": 18}),
        (
            {"prompt": [[5] * LONG] * 3, "prompt_logprobs": 20, "logprobs": 1, **IDLE},
            "prompt_logprobs",
            {"prompt_logprobs": 9},
        ),
        ({"prompt": [[5] * LONG] * 31, "logprobs": 1, "n": 2, **IDLE}, "prompt", {"prompt": [[5] * (LONG // 2)] * 16}),
    ],
)
def test_log_probabilities_of_prompts_are_bounded(
    http: httpx.Client, engine: FakeEngine, fields: dict[str, Any], param: str, fits: dict[str, Any]
) -> None:
    assert engine.info is not None
    engine.info = replace(engine.info, max_model_len=LONG + 1)
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "it has been asked")
    answer = http.post("/v1/completions", json=fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    [value] = fits.values()
    most = f"{value:,}" if isinstance(value, int) else f"{sum(map(len, value)):,} tokens"
    assert error["message"].endswith(f"may be at most {most}." if isinstance(value, int) else f"at most {most}.")
    assert engine.requests == []
    assert http.post("/v1/completions", json=fields | fits).status_code == 429  # as the engine says
    if isinstance(value, int):
        [name] = fits
        assert http.post("/v1/completions", json=fields | {name: value + 1}).status_code == 400


def test_a_long_context_is_scored_with_all_alternatives(http: httpx.Client, engine: FakeEngine) -> None:
    assert engine.info is not None
    engine.info = replace(engine.info, max_model_len=LONG)
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "it has been asked")
    for wanted in ({"logprobs": 20, "prompt_logprobs": 20}, {"logprobs": 20}, {"prompt_logprobs": 20}):
        body = {"prompt": [5] * LONG, "echo": True, "max_tokens": 0}
        assert http.post("/v1/completions", json=body | wanted).status_code == 429


@pytest.mark.parametrize(
    "route", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/generate"]
)
def test_how_long_an_answer_is_at_least(http: httpx.Client, engine: FakeEngine, route: str) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 9}
    if route == "/v1/responses":
        body = {"input": "hi", "max_output_tokens": 9}
    assert http.post(route, json=body | {"min_tokens": 4}).status_code == 200
    params = engine.requests[-1].params
    assert (params.min_tokens, params.max_tokens) == (4, 9)
    assert params.stop_token_ids
    assert http.post(route, json=body | {"ignore_eos": True}).status_code == 200
    assert engine.requests[-1].params.stop_token_ids == ()
