"""A program and a client of the server get the same answer to the same request."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo import LLM, InvalidRequest, RequestOutput, SamplingParams, StreamChunk, StructuredOutputsParams
from tests.properties import examples

TEXTS = st.text("the quick brown fox\n é😀", min_size=1, max_size=40)
PARAMS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 24), "seed": st.integers(-(2**63), 2**63 - 1)},
    optional={
        "n": st.integers(1, 3),
        "min_tokens": st.integers(0, 1),
        "temperature": st.sampled_from([0, 0.5, 1.3]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "typical_p": st.sampled_from([0.5, 1.0]),
        "top_k": st.sampled_from([-1, 0, 5]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([-1.0, 1.0]),
        "frequency_penalty": st.sampled_from([-1.0, 1.0]),
        "logit_bias": st.dictionaries(st.integers(3, 300), st.floats(-5, 5), max_size=3),
        # With a token that nothing else here bans: there must be one to draw.
        "allowed_token_ids": st.lists(st.integers(3, 300), max_size=60).map(lambda ids: [3, *ids]),
        "bad_words": st.lists(st.text("aeothn ", min_size=1, max_size=4), max_size=5),
        "stop": st.lists(st.text("aeot ", min_size=1, max_size=2), max_size=2),
        "stop_token_ids": st.lists(st.integers(4, 300), max_size=20),
        "include_stop_str_in_output": st.booleans(),
        "ignore_eos": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "logprobs": st.integers(0, 3),
        "truncate_prompt_tokens": st.sampled_from([-1, 1, 2, 5]),
        "truncation_side": st.sampled_from(["left", "right"]),
        "repetition_detection": st.fixed_dictionaries({"max_pattern_size": st.integers(1, 3), "min_count": st.just(2)}),
    },
)
SHARED = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}  # examples change nothing in them


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}
STRUCTURED = st.one_of(
    st.fixed_dictionaries({"choice": st.lists(TEXTS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"regex": st.sampled_from(["[a-f]{3,9}", "(the|quick) [0-9]+", "é*"])}),
    st.fixed_dictionaries(
        {"json": st.sampled_from([SCHEMA, json.dumps(SCHEMA), {"enum": ["a", 1, None]}, {}])},
        optional={"disable_any_whitespace": st.booleans()},
    ),
    st.fixed_dictionaries({"json": st.just(SCHEMA), "whitespace_pattern": st.sampled_from([" ?", "\\t"])}),
    st.just({"json_object": True}),
    st.just({"structural_tag": {"type": "structural_tag", "format": {"type": "regex", "pattern": "[a-c]{2}"}}}),
    st.fixed_dictionaries({"grammar": st.sampled_from(['start: "a" | "b" start', 'root ::= "x" [0-9]* "y"'])}),
)
NOT_KEPT: list[dict[str, Any]] = [
    {"json": {"properties": {"a": {"type": "objekt"}}}},
    {"json": {"items": {"divisibleBy": 2}}},
    {"json": "{"},
    {"regex": "("},
    {"structural_tag": {"type": "structural_tag", "format": {"type": "regex", "pattern": "("}}},
    {"grammar": "start: nothing"},
    {"grammar": 'root ::= "'},
]
NOT_ONE: list[dict[str, Any]] = [
    {"regex": "a", "choice": ["a"]},
    {"json_object": False},
    {},
    {"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "},
]


def completions(server: httpx.Client, prompt: object, fields: dict[str, Any]) -> dict[str, Any]:
    reply = server.post("/v1/completions", json={"prompt": prompt, "return_token_ids": True, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def choices(output: RequestOutput) -> list[tuple[object, ...]]:
    return [(o.text, o.token_ids, o.finish_reason, o.stop_reason) for o in output.outputs]


def usage(output: RequestOutput) -> tuple[int, int]:
    return output.usage.prompt_tokens, output.usage.completion_tokens


@examples(20, **SHARED)
@given(TEXTS | st.lists(st.integers(0, 300), min_size=1, max_size=40), PARAMS)
def test_generate(llm: LLM, server: httpx.Client, prompt: str | list[int], fields: dict[str, Any]) -> None:
    reply = completions(server, prompt, fields)
    [output] = llm.generate(prompt, SamplingParams(**fields))
    names = ("text", "token_ids", "finish_reason", "stop_reason")
    assert choices(output) == [tuple(choice[name] for name in names) for choice in reply["choices"]]
    assert usage(output) == (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
    for mine, theirs in zip(output.outputs, reply["choices"], strict=True):
        if "logprobs" not in fields:
            assert mine.logprobs is None
            continue
        drawn = [position[token].logprob for position, token in zip(mine.logprobs, mine.token_ids, strict=True)]
        assert drawn == theirs["logprobs"]["token_logprobs"]


@examples(20, **SHARED)
@given(st.lists(TEXTS, min_size=1, max_size=3), PARAMS)
def test_chat(llm: LLM, server: httpx.Client, texts: list[str], fields: dict[str, Any]) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(texts)]
    body = {"messages": messages, "return_token_ids": True, **fields, "logprobs": "logprobs" in fields}
    reply = server.post("/v1/chat/completions", json=body | {"top_logprobs": fields.get("logprobs", 0)})
    assert reply.status_code == 200, reply.text
    [output] = llm.chat(messages, SamplingParams(**fields))
    expected = [
        (choice["message"]["content"], choice["token_ids"], choice["finish_reason"], choice["stop_reason"])
        for choice in reply.json()["choices"]
    ]
    assert choices(output) == expected
    assert output.prompt_token_ids == reply.json()["prompt_token_ids"]


@examples(20, **SHARED)
@given(TEXTS, PARAMS)
def test_a_stream_adds_up_to_the_whole(llm: LLM, prompt: str, fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    [whole] = llm.generate(prompt, params)
    parts: list[list[StreamChunk]] = [[] for _ in range(params.n)]
    for chunk in llm.stream(prompt, params):
        parts[chunk.index].append(chunk)
    joined = [
        (
            "".join(map(str, chunks)),
            [token for chunk in chunks for token in chunk.token_ids],
            chunks[-1].finish_reason,
            chunks[-1].stop_reason,
        )
        for chunks in parts
    ]
    assert joined == choices(whole)
    logprobs = [[entry for chunk in chunks for entry in chunk.logprobs or ()] for chunks in parts]
    assert logprobs == [output.logprobs or [] for output in whole.outputs]


@examples(10, **SHARED)
@given(TEXTS, STRUCTURED, st.fixed_dictionaries({"max_tokens": st.integers(1, 24), "n": st.integers(1, 2)}))
def test_structured_outputs(
    llm: LLM, server: httpx.Client, text: str, wanted: dict[str, Any], fields: dict[str, Any]
) -> None:
    fields = {**fields, "seed": 3, "logprobs": 1}
    params = SamplingParams(**fields, structured_outputs=wanted)
    reply = completions(server, text, fields | {"structured_outputs": wanted})
    [output] = llm.generate(text, params)
    names = ("text", "token_ids", "finish_reason", "stop_reason")
    assert choices(output) == [tuple(choice[name] for name in names) for choice in reply["choices"]]
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "return_token_ids": True, "structured_outputs": wanted, **fields, "logprobs": True}
    chat = server.post("/v1/chat/completions", json=body)
    assert chat.status_code == 200, chat.text
    [output] = llm.chat(messages, params)
    assert [o.text for o in output.outputs] == [choice["message"]["content"] for choice in chat.json()["choices"]]
    assert [o.token_ids for o in output.outputs] == [choice["token_ids"] for choice in chat.json()["choices"]]
    streamed = ["" for _ in output.outputs]
    for chunk in llm.stream(messages, SamplingParams(**fields, structured_outputs=StructuredOutputsParams(**wanted))):
        streamed[chunk.index] += chunk.text
    assert streamed == [o.text for o in output.outputs]


@pytest.mark.parametrize("wanted", NOT_KEPT + NOT_ONE, ids=str)
def test_what_is_not_kept_to_is_refused_in_the_servers_words(
    llm: LLM, server: httpx.Client, wanted: dict[str, Any]
) -> None:
    error = server.post("/v1/completions", json={"prompt": "the", "structured_outputs": wanted}).json()["error"]
    with pytest.raises(InvalidRequest) as refused:
        llm.generate("the", SamplingParams(structured_outputs=wanted))
    assert (f"{refused.value}.", refused.value.field) == (error["message"], error["param"])


@pytest.mark.parametrize("wanted", NOT_KEPT, ids=str)
def test_of_several_prompts_the_one_is_named_that_is_refused(llm: LLM, wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt 1: 'structured_outputs\."):
        llm.generate(["the", "quick"], [SamplingParams(), SamplingParams(structured_outputs=wanted)])


async def complete_both(llm: LLM, params: SamplingParams) -> tuple[str, str]:
    [output] = await llm.agenerate("the", params)
    return output.text, "".join([chunk.text async for chunk in llm.astream("the", params)])


def test_structured_outputs_in_an_event_loop(llm: LLM) -> None:
    params = SamplingParams(structured_outputs={"regex": "(the|fox){2}"}, max_tokens=20, seed=3)
    whole, streamed = asyncio.run(complete_both(llm, params))
    assert whole == streamed
    assert re.fullmatch("(the|fox){2}", whole)


def test_what_the_model_recommends_counts_where_nothing_is_said(llm: LLM, server: httpx.Client) -> None:
    assert (
        llm.generate("the", SamplingParams(seed=5))[0].text
        == completions(server, "the", {"seed": 5})["choices"][0]["text"]
    )
    said = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
    assert llm.generate("the", SamplingParams(seed=5)) == llm.generate("the", SamplingParams(seed=5, **said))
    assert llm.generate("the", SamplingParams(seed=5)) != llm.generate("the", SamplingParams(seed=5, temperature=2))


def test_the_prompt_is_scored_as_by_the_server(llm: LLM, server: httpx.Client) -> None:
    reply = completions(server, "the quick fox", {"prompt_logprobs": 2, "max_tokens": 1})
    [output] = llm.generate("the quick fox", SamplingParams(prompt_logprobs=2, max_tokens=1))
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    mine = [{str(token): entry._asdict() for token, entry in known.items()} for known in output.prompt_logprobs[1:]]
    assert mine == reply["choices"][0]["prompt_logprobs"][1:]
