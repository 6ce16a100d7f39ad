"""Chat completions through OpenAI's SDK."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from octavo.deployments import GenerationDefaults
from octavo.engine.request import SamplingParams
from octavo.server.settings import ServerSettings
from octavo.text import Tokenizer
from tests.server.fake import ALIAS, CONTEXT, MODEL, FakeEngine, running, served
from tests.server.sse import events, text_of

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**({"model": MODEL, "messages": QUESTION} | fields))


def params_of(client: openai.OpenAI, engine: FakeEngine, **fields: Any) -> SamplingParams:
    ask(client, **fields)
    return engine.requests[-1].params


def test_answers(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "Paris, größer als 😀."
    answer = ask(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Paris, größer als 😀."
    assert choice.finish_reason == "stop"
    assert choice.stop_reason is None
    prompt = tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert engine.requests[-1].prompt_token_ids == prompt
    said = tokenizer.encode("Paris, größer als 😀.")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(said) + 1  # the end-of-turn token counts
    assert answer.usage.total_tokens == len(prompt) + len(said) + 1
    assert answer.usage.prompt_tokens_details.cached_tokens == len(prompt) // 16 * 16


def test_alias_and_default_model(http: httpx.Client) -> None:
    for name in ({"model": ALIAS}, {"model": MODEL}, {}, {"model": None}):
        answer = http.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 1} | name)
        assert answer.json()["model"] == MODEL


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 5},
        {"max_completion_tokens": 3},
        {"n": 3},
        {"n": 2, "stop": ["höre", " as 1"]},
        {"stop": "und"},
        {"stop": ["d h", "zzz"], "extra_body": {"include_stop_str_in_output": True}},
        {"logprobs": True, "top_logprobs": 3, "stop": "und"},
        {"logprobs": True, "n": 2, "max_tokens": 9},
        {"extra_body": {"ignore_eos": True, "skip_special_tokens": False}, "max_tokens": 70},
        {"extra_body": {"stop_token_ids": [ord("r") - 33 + 3]}},
        {"extra_body": {"min_tokens": 30}, "stop": "I"},
    ],
)
def test_streamed_equals_whole(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    whole = ask(client, **fields)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **fields))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        assert own[-1].finish_reason == choice.finish_reason
        assert own[-1].stop_reason == choice.stop_reason
        scores = [entry for part in own if part.logprobs for entry in part.logprobs.content]
        assert scores == (choice.logprobs.content if choice.logprobs else [])


def test_many_at_once_each_get_their_own(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.step_seconds = 0.002

    def converse(number: int, stream: bool = True) -> Any:
        return ask(client, messages=[{"role": "user", "content": f"I am number {number}"}], stream=stream)

    with ThreadPoolExecutor(32) as pool:
        streams = list(pool.map(converse, range(32)))  # every one has begun before the first is read
    answers = ["".join(chunk.choices[0].delta.content or "" for chunk in stream) for stream in streams]
    assert all(f"number {number}\\n" in answer for number, answer in enumerate(answers))
    engine.step_seconds = 0.0
    assert answers == [converse(number, stream=False).choices[0].message.content for number in range(32)]


def test_choices_of_one_prompt(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = ask(client, n=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(f"as {choice.index}" in choice.message.content for choice in answer.choices)
    assert len(engine.requests) == 1
    assert answer.usage.prompt_tokens == len(engine.requests[0].prompt_token_ids)


def test_stop_string_ends_a_choice_at_once(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "one two three four" if index else "four three two one"
    answer = ask(client, n=2, stop=["three"])
    assert [choice.message.content for choice in answer.choices] == ["four ", "one two "]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert [choice.stop_reason for choice in answer.choices] == ["three", "three"]
    # Tokens up to the one that completes the stop string count, and none that the engine may have added meanwhile.
    spoken = [len(tokenizer.encode(text)) for text in ("four three", "one two three")]
    assert answer.usage.completion_tokens == sum(spoken)
    assert engine.aborts == {0: 1, None: 1}  # the first choice alone, then all that was left


def test_stop_string_that_begins_before_the_minimum(
    client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    newline = tokenizer.encode("\n")
    engine.tokens = [*newline, *newline, *tokenizer.encode("Paris")]
    for minimum, expected in ((1, ""), (len(engine.tokens), "\n\nParis")):
        answer = ask(client, stop=["\n\n"], max_tokens=len(engine.tokens), extra_body={"min_tokens": minimum})
        assert answer.choices[0].message.content == expected


def test_stop_token_of_the_client(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "Paris, and"
    [comma] = tokenizer.encode(",")
    answer = ask(client, extra_body={"stop_token_ids": [comma]})
    assert (answer.choices[0].message.content, answer.choices[0].stop_reason) == ("Paris", comma)
    answer = ask(client, extra_body={"stop_token_ids": [comma], "include_stop_str_in_output": True})
    assert answer.choices[0].message.content == "Paris,"


def test_what_decodes_to_nothing_still_counts(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("😀")[:2]
    engine.tokens = [*half, tokenizer.encode("!")[0]]
    answer = ask(client, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert answer.choices[0].message.content == "�"
    answer = ask(client, max_tokens=3, logprobs=True)
    assert answer.choices[0].message.content == "�!"
    assert [bytes(entry.bytes) for entry in answer.choices[0].logprobs.content] == [
        tokenizer.token_bytes(token) for token in engine.tokens
    ]


def test_logprobs(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "é!"
    answer = ask(client, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    token = engine.tokenizer.encode("é")[0]
    expected = engine.logprobs(token, 2)
    assert content[0].logprob == expected.logprob
    assert content[0].bytes == list(tokenizer.token_bytes(token))
    assert [top.logprob for top in content[0].top_logprobs] == expected.top_logprobs
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(client).choices[0].logprobs is None


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    params = params_of(
        client,
        engine,
        n=2,
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        seed=-1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"5": -100, "6": 1.5},
        logprobs=True,
        top_logprobs=4,
        extra_body={"top_k": -1, "min_p": 0.1, "typical_p": 0.7, "repetition_penalty": 1.2}
        | {"min_tokens": 2, "stop_token_ids": [9]},
    )
    assert params == SamplingParams(
        n=2,
        temperature=0.5,
        top_p=0.9,
        typical_p=0.7,
        max_tokens=7,
        seed=2**63 - 1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={5: -100.0, 6: 1.5},
        logprobs=4,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.2,
        min_tokens=2,
        stop_token_ids=tuple(sorted({9, *engine.tokenizer.stop_token_ids})),
    )


def test_defaults(client: openai.OpenAI, engine: FakeEngine) -> None:
    params = params_of(client, engine)
    assert params.temperature == params.top_p == params.repetition_penalty == 1
    assert params.top_k == params.min_p == 0
    assert params.max_tokens == CONTEXT - len(engine.requests[-1].prompt_token_ids)
    assert set(params.stop_token_ids) == engine.tokenizer.stop_token_ids
    assert params_of(client, engine, extra_body={"ignore_eos": True}, max_tokens=3).stop_token_ids == ()
    nulls = dict.fromkeys(("temperature", "stop", "n", "max_tokens", "logit_bias", "tools", "response_format"))
    assert params_of(client, engine, extra_body=nulls | {"seed": params.seed}) == params
    assert params_of(client, engine, extra_body={"top_k": 10**9}).top_k == engine.info.vocab_size


def test_every_request_draws_its_own_seed(client: openai.OpenAI, engine: FakeEngine) -> None:
    seeds = {params_of(client, engine, max_tokens=1).seed for _ in range(10)}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_defaults_of_the_model_and_the_server(engine: FakeEngine) -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": "x", "eos_token_id": [1]}
    defaults = GenerationDefaults.from_config(config)
    drawn = []
    for _ in range(2):
        with running(ServerSettings(seed=7), served(engine, defaults=defaults)) as url:
            sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)
            params = params_of(sdk, engine)
            assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (0.6, 0.9, 40, 1.0)
            assert params_of(sdk, engine, temperature=0).temperature == 0
            drawn.append(params.seed)
    assert drawn[0] == drawn[1]


def test_messages_of_all_kinds(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": ""},
    ]
    ask(client, messages=messages, max_tokens=1)
    prompt = tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_options(client: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    def prompt(messages: list[dict[str, str]] = QUESTION, **extra: Any) -> str:
        ask(client, messages=messages, max_tokens=1, extra_body=extra)
        return tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)

    assert prompt(add_generation_prompt=False).endswith("France?<|im_end|>\n")
    assert prompt(chat_template_kwargs={"opening": "Well,"}).endswith("assistant\nWell,")
    begun = [*QUESTION, {"role": "assistant", "content": "The capital is"}]
    assert prompt(begun, continue_final_message=True).endswith("<|im_start|>assistant\nThe capital is")


@pytest.mark.parametrize(
    "name", ["self", "messages_", "template", "args", "kwargs", "range", "loop", "", "a b", "é", "True"]
)
def test_any_name_may_be_a_template_variable(http: httpx.Client, engine: FakeEngine, name: str) -> None:
    for route, field in (("/v1/chat/completions", "choices"), ("/tokenize", "tokens")):
        answer = http.post(route, json={"messages": QUESTION, "max_tokens": 1, "chat_template_kwargs": {name: 1}})
        assert answer.status_code == 200
        assert field in answer.json()


def test_empty_lists_count_as_absent(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    """As nulls do: templates ask whether a message has calls at all."""
    plain = [*QUESTION, {"role": "assistant", "content": "Paris."}]
    empty = [QUESTION[0] | {"tools": [], "note": None}, plain[1] | {"tool_calls": [], "annotations": []}]
    fields = ("tools", "stop", "stop_token_ids", "modalities", "documents", "functions", "allowed_token_ids")
    prompts = []
    for messages, extra in ((plain, {}), (empty, {key: [] for key in fields})):
        body = {"messages": messages, "max_tokens": 1, "chat_template_kwargs": {"opening": "x"}}
        assert http.post("/v1/chat/completions", json=body | extra).status_code == 200
        prompts.append(engine.requests[-1].prompt_token_ids)
    assert prompts[0] == prompts[1]
    answer = http.post("/tokenize", json={"prompt": "hi", "messages": []})
    assert answer.json()["tokens"] == tokenizer.encode("hi")


def test_what_is_ignored_and_what_is_tolerated(client: openai.OpenAI) -> None:
    answer = ask(
        client,
        user="ann",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        tool_choice="none",
        function_call="none",
        tools=[{"type": "function", "function": {"name": "f"}}],
        reasoning_effort="low",
        extra_body={"never_heard_of": {"x": 1}, "guided_json": None, "use_beam_search": False},
    )
    assert answer.choices[0].finish_reason == "stop"


def test_token_ids_on_request(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    body = {"messages": QUESTION, "max_tokens": 4, "return_token_ids": True, "logprobs": True}
    whole = http.post("/v1/chat/completions", json=body).json()
    assert whole["prompt_token_ids"] == engine.requests[-1].prompt_token_ids
    assert len(whole["choices"][0]["token_ids"]) == 4
    chunks = events(http.post("/v1/chat/completions", json=body | {"stream": True}).text)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    ids = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    assert text_of(chunks) == tokenizer.decode(ids)


def test_prompt_logprobs(http: httpx.Client, engine: FakeEngine) -> None:
    body = {"messages": QUESTION, "max_tokens": 1, "prompt_logprobs": 2}
    positions = http.post("/v1/chat/completions", json=body).json()["prompt_logprobs"]
    ids = engine.requests[-1].prompt_token_ids
    assert len(positions) == len(ids)
    assert positions[0] is None
    expected = engine.logprobs(ids[1], 2)
    entry = positions[1][str(ids[1])]
    assert (entry["logprob"], entry["rank"]) == (expected.top_logprobs[1], 2)
