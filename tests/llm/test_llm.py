"""A model in a program, asked by many at once and in all ways."""

import asyncio
import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo import LLM, OctavoError, SamplingParams, create_app

GREEDY = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def test_outputs_come_in_the_prompts_order(llm: LLM) -> None:
    prompts = [f"{'the quick ' * (i % 7)}{i}" for i in range(60)]
    params = [SamplingParams(temperature=0, max_tokens=1 + (i * 7) % 13) for i in range(60)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    alone = [llm.generate(*pair)[0] for pair in zip(prompts, params, strict=True)]
    assert [output.outputs for output in outputs] == [output.outputs for output in alone]


def test_no_prompts_no_outputs(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.chat([]) == []


def test_a_batch_larger_than_the_queue_goes_through(model: str) -> None:
    with LLM(model, max_num_seqs=2, max_num_queued_reqs=1, max_num_queued_tokens=50) as llm:
        outputs = llm.generate(["the quick brown fox " * 4] * 40, SamplingParams(max_tokens=2, n=2, ignore_eos=True))
    assert [len(choice.token_ids) for output in outputs for choice in output.outputs] == [2] * 80


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("", None, "'prompt' is empty: there must be at least one token to continue"),
        ([[]], None, "prompt 0 is neither a text nor a list of at least one token id"),
        (["a", [3, 99999]], None, "prompt 1: 'prompt' has token id 99999; the model's ids go from 0 to"),
        ([1.5], None, "prompt 0 is neither a text nor a list of at least one token id"),
        (7, None, "prompts are texts or lists of token ids, not int"),
        ([{"role": "user", "content": "Hi"}], None, "for messages there is chat()"),
        ("a " * 600, None, "maximum context length is 256 tokens. However, your prompt resulted in"),
        (
            "a",
            SamplingParams(max_tokens=256),
            "However, you requested 257 tokens (1 in the prompt, 256 in the completion)",
        ),
        ("a", SamplingParams(n=9), "'n' is 9, but at most 8 choices run at once"),
        ("a", SamplingParams(min_tokens=17), "'min_tokens' is 17, more than the 16 tokens allowed"),
        ("a", SamplingParams(stop_token_ids=[99999]), "'stop_token_ids' has token id 99999"),
        ("a", SamplingParams(logit_bias={99999: 1}), "'logit_bias' has token id 99999"),
        (["a", "b"], [GREEDY], "1 sampling_params for 2 prompts"),
        ("a", 5, "sampling_params are SamplingParams for all prompts, or a list with those of each"),
        ("a", {"max_tokens": 5}, "sampling_params are SamplingParams for all prompts"),
        (["a", "b"], [GREEDY, None], "sampling_params are SamplingParams for all prompts"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(llm: LLM, prompts: object, params: object, message: str) -> None:
    with pytest.raises(OctavoError) as refused:
        llm.generate(prompts, params)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stream_refuses_parameters_that_are_none(llm: LLM) -> None:
    with pytest.raises(OctavoError, match="sampling_params are SamplingParams"):
        next(llm.stream("a", 5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "a conversation is a list of messages, not str"),
        (["Hi"], "conversation 0 is no list of at least one message"),
        ([[]], "conversation 0 is no list of at least one message"),
        ([{"content": "Hi"}], "message 0 has the role None; use one of system"),
        ([{"role": "user"}], "message 0 of role user needs content"),
        ([{"role": "user", "content": 5}], "message 0 has content that is neither text nor a list of text parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "neither text nor a list of text parts"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(llm: LLM, messages: object, message: str) -> None:
    with pytest.raises(OctavoError) as refused:
        llm.chat(messages)  # type: ignore[arg-type]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seq": 8}, "the setting max_num_seq is unknown; did you mean max_num_seqs?"),
        ({"max_num_seqs": 0}, "a whole number from 1 to 65,536 (keyword argument max_num_seqs)"),
        ({"max_model_len": "many"}, "max_model_len is 'many', but must be a number of tokens such as 4096, 8k or 32Ki"),
        ({"kv_cache_memory_bytes": 10}, "a KV cache of 10 bytes holds no page"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    model: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(OctavoError) as refused:
        LLM(model, **settings)
    assert message in str(refused.value)


def test_an_unknown_model_is_refused_in_one_line() -> None:
    with pytest.raises(OctavoError, match="unknown model 'no such model'"):
        LLM("no such model")


@pytest.mark.parametrize("model", ["", " ", 5, None, ["m"], b"m"])
def test_what_can_be_no_model_is_refused_in_one_line(model: object) -> None:
    for use in (LLM, create_app):
        with pytest.raises(OctavoError, match="a model is a name, or the path of a folder or file, not"):
            use(model)  # type: ignore[operator]


def test_a_model_may_be_a_path(llm: LLM, model: str) -> None:
    with LLM(Path(model), in_process=True, threads=1) as other:
        assert other.model == llm.model
        assert other.generate("a", GREEDY)[0].outputs == llm.generate("a", GREEDY)[0].outputs


def in_flight(llm: LLM) -> int:
    """Requests that the engine has not ended."""
    return len(llm._generator.deployment.engine.ledger)


def eventually_idle(llm: LLM) -> None:
    deadline = time.monotonic() + 10
    while in_flight(llm):
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.01)


def test_many_threads_at_once(llm: LLM) -> None:
    prompts = [f"{'fox ' * (i % 5)}{i}" for i in range(24)]
    alone = [llm.generate(prompt, GREEDY)[0].text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        assert [outputs[0].text for outputs in pool.map(lambda p: llm.generate(p, GREEDY), prompts)] == alone
        streams = pool.map(lambda p: "".join(map(str, llm.stream(p, GREEDY))), prompts)
        assert list(streams) == alone


def test_leaving_a_stream_ends_the_request(llm: LLM) -> None:
    for chunk in llm.stream("the", LONG):
        assert chunk.token_ids
        break
    eventually_idle(llm)
    stream = llm.stream("the", LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    eventually_idle(llm)
    llm.stream("the", LONG)  # never begun
    assert in_flight(llm) == 0


def test_a_stream_takes_text_ids_and_messages(llm: LLM) -> None:
    ids = llm.tokenizer.encode("the quick")
    assert "".join(map(str, llm.stream(ids, GREEDY))) == "".join(map(str, llm.stream("the quick", GREEDY)))
    messages = [{"role": "user", "content": "fox"}]
    assert "".join(map(str, llm.stream(messages, GREEDY))) == llm.chat(messages, GREEDY)[0].text
    with pytest.raises(OctavoError, match="a stream continues one prompt, not 2"):
        llm.stream(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(OctavoError, match="prompt_logprobs does not come with a stream"):
        llm.stream("a", SamplingParams(prompt_logprobs=1))


def test_the_last_message_can_be_continued(llm: LLM) -> None:
    messages = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "over the"}]
    [output] = llm.chat(messages, GREEDY, continue_final_message=True)
    assert output.prompt is not None
    assert output.prompt.endswith("over the")
    with pytest.raises(OctavoError, match="'add_generation_prompt' is a field of its own, not of chat_template_kwargs"):
        llm.chat(messages, chat_template_kwargs={"add_generation_prompt": False})


def test_inside_a_running_event_loop(llm: LLM) -> None:
    """As in Jupyter: the caller's thread has a loop, which stands still meanwhile."""

    async def cell() -> str:
        return llm.generate("the", GREEDY)[0].text + "".join(map(str, llm.stream("the", GREEDY)))

    text = llm.generate("the", GREEDY)[0].text
    assert asyncio.run(cell()) == text + text


def test_asynchronous_callers_get_the_same_while_their_loop_goes_on(llm: LLM) -> None:
    messages = [{"role": "user", "content": "fox"}]

    async def program() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        several = await asyncio.gather(*(llm.agenerate(f"fox {i}", GREEDY) for i in range(10)))
        assert [outputs[0].text for outputs in several] == texts
        assert (await llm.achat(messages, GREEDY))[0].text == chat
        assert "".join([str(chunk) async for chunk in llm.astream(messages, GREEDY)]) == chat
        counting.cancel()
        assert turns > 100

    texts = [llm.generate(f"fox {i}", GREEDY)[0].text for i in range(10)]
    chat = llm.chat(messages, GREEDY)[0].text
    asyncio.run(program())
    asyncio.run(program())  # another loop


def test_a_cancelled_task_ends_its_requests(llm: LLM) -> None:
    async def program() -> None:
        task = asyncio.create_task(llm.agenerate(["the"] * 20, LONG))
        while not in_flight(llm):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in llm.astream("the", LONG):
            break
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await llm.agenerate("the", LONG)

    asyncio.run(program())
    eventually_idle(llm)


def test_closing_ends_what_others_wait_for(model: str) -> None:
    with LLM(model, max_num_seqs=8) as llm, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(llm.generate, ["the"] * 30, LONG) for _ in range(2)]
        waiting.append(pool.submit(lambda: list(llm.stream("the", LONG))))
        while in_flight(llm) < 3:
            time.sleep(0.001)
        llm.close()
        for future in waiting:
            assert isinstance(future.exception(10), OctavoError)
        llm.close()
        for call in (lambda: llm.generate("the"), lambda: list(llm.stream("the"))):
            with pytest.raises(OctavoError, match="this LLM was closed"):
                call()
        with pytest.raises(OctavoError, match="this LLM was closed"):
            asyncio.run(llm.agenerate("the"))


def test_it_cannot_be_pickled(llm: LLM) -> None:
    with pytest.raises(TypeError, match="an LLM cannot be sent to another process; make one there"):
        pickle.dumps(llm)
    with pytest.raises(TypeError):
        copy.copy(llm)


def test_a_timeout_ends_with_what_is_there(llm: LLM) -> None:
    [output] = llm.generate("the quick", SamplingParams(max_tokens=200, timeout=1e-9, ignore_eos=True))
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("length", "timeout")
    whole = llm.generate("the quick", SamplingParams(max_tokens=20, seed=3))
    assert whole == llm.generate("the quick", SamplingParams(max_tokens=20, seed=3, timeout=1000))
