"""Text completions through OpenAI's SDK, and as evaluation harnesses ask for them."""

from typing import Any

import httpx
import openai
import pytest

from octavo.text import Tokenizer
from tests.server.conftest import eventually
from tests.server.fake import MODEL, FakeEngine
from tests.server.sse import events, text_of


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **fields)


def test_continues_text(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: " of France is Paris, and it has been for a long time, 0 1 2 3 4 5 6 7 8 9"
    answer = complete(client, "The capital")
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 16  # OpenAI's default
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == tokenizer.decode(tokenizer.encode(engine.reply("", 0))[:16])
    assert engine.requests[-1].prompt_token_ids == tokenizer.encode("The capital")


def test_prompts_of_all_kinds(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(text) for text in ("What is", "A sheet")]
    for prompt, expected in (
        ("What is", ids[:1]),
        (["What is", "A sheet"], ids),
        (ids[0], ids[:1]),
        (ids, ids),
        (["What is", ids[1]], ids),
    ):
        engine.requests.clear()
        answer = complete(client, prompt, n=2, max_tokens=40)
        assert sorted(request.prompt_token_ids for request in engine.requests) == sorted(expected)
        assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
        for choice in answer.choices:
            source = tokenizer.decode(expected[choice.index // 2])
            assert f"{source!r} as {choice.index % 2}" in choice.text
        assert answer.usage.prompt_tokens == sum(map(len, expected))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 60},
        {"n": 2, "max_tokens": 50, "stop": ["höre"]},
        {"echo": True},
        {"echo": True, "logprobs": 2, "n": 2},
        {"logprobs": 0, "stop": "I r"},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"echo": True, "max_tokens": 0},
        {"logprobs": 3, "extra_body": {"return_tokens_as_token_ids": True}},
        {"extra_body": {"return_token_ids": True}, "stop": "ea"},
    ],
)
def test_streamed_equals_whole(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    prompts = ["où est 😀", "A sheet that is"]
    whole = complete(client, prompts, **fields)
    chunks = list(complete(client, prompts, stream=True, stream_options={"include_usage": True}, **fields))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        assert own[-1].stop_reason == choice.stop_reason
        if hasattr(choice, "token_ids"):
            assert [token for part in own for token in part.token_ids] == choice.token_ids
            assert own[0].prompt_token_ids == choice.prompt_token_ids
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [getattr(part.logprobs, key) for part in own if part.logprobs]
            expected = getattr(choice.logprobs, key) if choice.logprobs else []
            assert [item for part in parts for item in part] == expected


def test_logprobs(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "Paris, and"
    choice = complete(client, "What", echo=True, logprobs=1).choices[0]
    logprobs = choice.logprobs
    ids = tokenizer.encode("What") + tokenizer.encode("Paris, and")
    assert choice.text == "WhatParis, and"
    assert logprobs.tokens == [*map(tokenizer.token_text, ids), "<|im_end|>"]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:-1] == [engine.logprobs(token, 1).logprob for token in ids[1:]]
    positions = list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))
    for token, value, top in positions[1:]:
        assert top[token] == value
        assert len(top) == 2  # the most probable token and this one
    for offset, token in list(zip(logprobs.text_offset, logprobs.tokens, strict=True))[:-1]:
        assert choice.text[offset : offset + len(token)] == token


def test_scoring_as_evaluation_harnesses_do(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    texts = ["What is the capital of France?", "Paris, and it has been"]
    prompts = [tokenizer.encode(text) for text in texts]
    for max_tokens in (0, 1):
        body = {
            "model": MODEL,
            "prompt": prompts,
            "echo": True,
            "logprobs": 1,
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": 1234,
        }
        answer = http.post("/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == max_tokens * len(prompts)
        for choice, ids in zip(answer["choices"], prompts, strict=True):
            scores = choice["logprobs"]["token_logprobs"]
            assert len(scores) == len(ids) + max_tokens
            assert scores[1 : len(ids)] == [engine.logprobs(token, 1).logprob for token in ids[1:]]
            assert choice["text"].startswith(tokenizer.decode(ids))


def test_echo_of_text_is_the_text(client: openai.OpenAI) -> None:
    text = "<|im_start|> kept as it came"
    assert complete(client, text, echo=True, max_tokens=0).choices[0].text == text


def test_interleaved_streams_of_a_list(http: httpx.Client, engine: FakeEngine) -> None:
    engine.step_seconds = 0.001
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 20, "stream": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert set(order[:8]) == {0, 1, 2, 3}
    assert all("one" in text_of(chunks, index) for index in (0, 1))
    assert all("two" in text_of(chunks, index) for index in (2, 3))


def test_best_of(client: openai.OpenAI) -> None:
    assert len(complete(client, "x", n=2, best_of=2).choices) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "x", n=1, best_of=2)
    assert caught.value.param == "best_of"


def test_long_prompts_do_not_stop_other_streams(http: httpx.Client, engine: FakeEngine) -> None:
    """Tokenising off the loop: the length is found out in a thread, and refused."""
    answer = http.post("/v1/completions", json={"prompt": "long " * 200_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_answers_that_go_in_circles_end(http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "abc" + "xyz" * 30
    circles = {"min_pattern_size": 2, "max_pattern_size": 5, "min_count": 4}
    body = {"prompt": "Well:", "max_tokens": 80, "repetition_detection": circles}
    for more in ({}, {"stop": ["xyzxyzxyzxyzxyzxyz"]}):
        [choice] = http.post("/v1/completions", json=body | more).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("abc" + "xyz" * 4, "repetition")
        assert choice["stop_reason"] == "repetition_detected"
    eventually(lambda: not engine.ledger)
    for more, reason in (({"stop": ["zxyz"]}, "stop"), ({"max_tokens": 15}, "length")):
        [choice] = http.post("/v1/completions", json=body | more).json()["choices"]
        assert choice["finish_reason"] == reason
    [choice] = http.post("/v1/completions", json=body | {"min_tokens": 20}).json()["choices"]
    assert choice["text"] == ("abc" + "xyz" * 6)[:20]
    [choice] = http.post("/v1/completions", json=body | {"repetition_detection": {}}).json()["choices"]
    assert choice["finish_reason"] == "length"
