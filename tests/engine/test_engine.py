"""The engine through its public way in, on a model whose every token can be predicted."""

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, Output, Refusal, Request, RequestRefused, SamplingParams
from tests.engine.toy import VOCAB, ToyExecutor, continuation, toy_logits


def make_engine(num_pages: int = 64, page_size: int = 4, max_model_len: int = 64, **settings: int | bool) -> Engine:
    executor = ToyExecutor(num_pages, page_size, breaks_on=settings.pop("breaks_on", None))  # type: ignore[arg-type]
    defaults: dict[str, int | bool] = {"max_num_seqs": 8, "max_num_batched_tokens": 32}
    config = EngineConfig(model="toy", page_size=page_size, **(defaults | settings))  # type: ignore[arg-type]
    return Engine(executor, config, max_model_len)


def run(engine: Engine) -> dict[tuple[str, int], list[Output]]:
    """Step until nothing is left; the outputs of every choice."""
    outputs: dict[tuple[str, int], list[Output]] = {}
    for _ in range(10_000):
        if not engine.has_work:
            break
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    assert not engine.has_work, "the engine does not come to an end"
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.used_count == 0
    return outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def request(name: str, prompt: list[int], **params: object) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**params))  # type: ignore[arg-type]


PROMPTS = [[1, 2, 3], list(range(20)), [5] * 9, [7], [*range(20), 3, 3], list(range(16))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 8},
        {"num_pages": 13},
        {"page_size": 1, "num_pages": 200},
        {"page_size": 16},
        {"enable_prefix_caching": False},
        {"max_num_seqs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_depend_on_the_request_alone(settings: dict[str, int], temperature: float) -> None:
    engine = make_engine(**settings)
    params = {"temperature": temperature, "max_tokens": 12, "seed": 5}
    for i, prompt in enumerate(PROMPTS):
        engine.add(request(str(i), prompt, **params))
    outputs = run(engine)
    for i, prompt in enumerate(PROMPTS):
        assert tokens(outputs[str(i), 0]) == continuation(prompt, SamplingParams(**params))  # type: ignore[arg-type]
        assert outputs[str(i), 0][-1].finish_reason is FinishReason.LENGTH


def test_small_pool_preempts_and_still_finishes() -> None:
    engine = make_engine(num_pages=13)
    for i, prompt in enumerate(PROMPTS):
        engine.add(request(str(i), prompt, temperature=0.0, max_tokens=30))
    outputs = run(engine)
    assert engine.stats().preemptions > 0
    for i, prompt in enumerate(PROMPTS):
        expected = continuation(prompt, SamplingParams(temperature=0.0, max_tokens=30))
        assert tokens(outputs[str(i), 0]) == expected


@pytest.mark.parametrize("prompt_length", [1, 3, 4, 8, 9, 17])
@pytest.mark.parametrize(
    "settings", [{}, {"num_pages": 12}, {"max_num_seqs": 2}, {"max_num_batched_tokens": 8}], ids=str
)
def test_choices_share_their_prompt_and_differ_after_it(prompt_length: int, settings: dict[str, int]) -> None:
    engine = make_engine(**settings)
    prompt = list(range(prompt_length))
    params = {"n": 5, "max_tokens": 15, "seed": 3}
    engine.add(request("a", prompt, **params))
    outputs = run(engine)
    for index in range(5):
        assert tokens(outputs["a", index]) == continuation(prompt, SamplingParams(**params), index)  # type: ignore[arg-type]
    assert len({tuple(tokens(out)) for out in outputs.values()}) == 5


def test_choices_hold_the_prompt_once() -> None:
    engine = make_engine(page_size=4, max_num_seqs=4)
    engine.add(request("a", list(range(32)), n=4, max_tokens=8))
    while engine.stats().running < 4:
        engine.step()
    engine.step()
    # Eight prompt pages; each choice has its own last one at most, and one page for what follows.
    assert engine.scheduler.pool.used_count <= 8 + 4 * 2


def test_prefix_is_found_again_and_only_under_the_same_salt() -> None:
    engine = make_engine()
    prompt = list(range(21))
    engine.add(request("first", prompt, max_tokens=4, temperature=0.0))
    first = run(engine)["first", 0]
    assert first[0].cached_tokens == 0
    engine.add(request("second", prompt, max_tokens=4, temperature=0.0))
    second = run(engine)["second", 0]
    assert second[0].cached_tokens == 20
    assert tokens(second) == tokens(first)
    params = SamplingParams(max_tokens=4, temperature=0.0)
    engine.add(Request(request_id="salted", prompt_token_ids=prompt, params=params, cache_salt="other"))
    assert run(engine)["salted", 0][0].cached_tokens == 0


def test_generated_tokens_are_cached_too() -> None:
    engine = make_engine()
    engine.add(request("turn", list(range(6)), max_tokens=12, temperature=0.0))
    answer = tokens(run(engine)["turn", 0])
    engine.add(request("next", list(range(6)) + answer + [1, 2], max_tokens=2, temperature=0.0))
    assert run(engine)["next", 0][0].cached_tokens == 16  # 17 tokens have keys and values; four full pages


def test_stop_tokens_end_a_choice_but_not_before_min_tokens() -> None:
    prompt = [3, 1, 4]
    free = continuation(prompt, SamplingParams(temperature=0.0, max_tokens=20))
    stop = free[4]
    engine = make_engine()
    engine.add(request("a", prompt, temperature=0.0, max_tokens=20, stop_token_ids=(stop,)))
    engine.add(request("b", prompt, temperature=0.0, max_tokens=20, stop_token_ids=(stop,), min_tokens=9))
    outputs = run(engine)
    assert tokens(outputs["a", 0]) == free[: free.index(stop) + 1]
    assert outputs["a", 0][-1].finish_reason is FinishReason.STOP
    late = tokens(outputs["b", 0])
    assert stop not in late[:9]
    assert len(late) >= 9


def test_penalties_count_output_tokens() -> None:
    engine = make_engine()
    engine.add(request("a", [1, 2], temperature=0.0, max_tokens=VOCAB, presence_penalty=1000.0))
    output = tokens(run(engine)["a", 0])
    assert sorted(output) == list(range(VOCAB)), "with an overwhelming presence penalty no token comes twice"


def test_logprobs_of_output_and_prompt() -> None:
    import numpy as np

    prompt = list(range(9))
    engine = make_engine(max_num_batched_tokens=8)
    engine.add(request("warm", prompt, max_tokens=1))
    run(engine)
    engine.add(request("a", prompt, temperature=0.0, max_tokens=3, logprobs=2, prompt_logprobs=1))
    outputs = run(engine)["a", 0]
    entries = outputs[0].prompt_logprobs
    assert entries is not None
    assert len(entries) == len(prompt) - 1
    known = prompt + tokens(outputs)
    everything = list(entries) + [entry for output in outputs for entry in output.logprobs or []]
    for position, entry in enumerate(everything, start=1):
        logits = toy_logits(np.array(known[:position], np.int32)).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.logprob == pytest.approx(expected[known[position]], abs=1e-5)
        assert entry.top_tokens[0] == int(np.argmax(logits))
        assert len(entry.top_tokens) == (1 if position < len(prompt) else 2)


def test_only_the_prompt_can_be_scored() -> None:
    engine = make_engine()
    engine.add(request("a", [1, 2, 3], max_tokens=0, prompt_logprobs=0))
    (output,) = run(engine)["a", 0]
    assert output.token_ids == []
    assert output.finish_reason is FinishReason.LENGTH
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 2


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("index", [None, 0, 1])
def test_abort_frees_pages_at_once(steps: int, index: int | None) -> None:
    engine = make_engine(max_num_batched_tokens=8)
    engine.add(request("a", list(range(30)), n=3, max_tokens=20, seed=1))
    for _ in range(steps):
        engine.step()
    engine.abort("a", index)
    if index is None:
        assert engine.scheduler.pool.used_count == 0
        assert not engine.has_work
    else:
        outputs = run(engine)
        for other in {0, 1, 2} - {index}:
            assert outputs["a", other][-1].finish_reason is FinishReason.LENGTH
        assert ("a", index) not in outputs or outputs["a", index][-1].finish_reason is None


@pytest.mark.parametrize("delivered", [0, 1, 7, 11])
def test_resumption_continues_token_for_token(delivered: int) -> None:
    params = SamplingParams(n=2, max_tokens=12, seed=9, frequency_penalty=0.5)
    whole = make_engine()
    whole.add(Request(request_id="a", prompt_token_ids=[1, 2, 3, 4, 5], params=params))
    expected = {index: tokens(out) for (_, index), out in run(whole).items()}
    engine = make_engine()
    outputs = {index: found[:delivered] for index, found in expected.items()}
    engine.add(Request(request_id="a", prompt_token_ids=[1, 2, 3, 4, 5], params=params, outputs=outputs, resumed=True))
    rest = run(engine)
    for index, found in expected.items():
        assert outputs[index] + tokens(rest["a", index]) == found


def test_a_request_that_breaks_the_model_fails_alone() -> None:
    engine = make_engine(breaks_on=VOCAB - 1)
    engine.add(request("good", [1, 2, 3], max_tokens=10, logit_bias={VOCAB - 1: -100.0}))
    engine.step()
    engine.add(request("bad", [4, VOCAB - 1], max_tokens=10, n=2))
    engine.add(request("late", [5, 6], max_tokens=10, logit_bias={VOCAB - 1: -100.0}))
    outputs = run(engine)
    for index in range(2):
        (only,) = outputs["bad", index]
        assert only.finish_reason is FinishReason.ERROR
    assert outputs["good", 0][-1].finish_reason is FinishReason.LENGTH
    assert outputs["late", 0][-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "params", "kind"),
    [
        ([], {}, Refusal.INVALID),
        ([VOCAB], {}, Refusal.INVALID),
        ([-1], {}, Refusal.INVALID),
        ([1], {"logit_bias": {VOCAB: 1.0}}, Refusal.INVALID),
        ([1] * 60, {"max_tokens": 5}, Refusal.TOO_LONG),
    ],
)
def test_what_can_never_be_served_is_refused(prompt: list[int], params: dict[str, object], kind: Refusal) -> None:
    engine = make_engine()
    with pytest.raises(RequestRefused) as refused:
        engine.add(request("a", prompt, **params))
    assert refused.value.kind is kind
    assert not engine.has_work
    assert not engine.is_live("a")


def test_what_exceeds_the_pool_is_refused_with_the_numbers() -> None:
    engine = make_engine(num_pages=4, page_size=4)
    with pytest.raises(RequestRefused, match="need 5 pages of 4 tokens, but the KV cache has 4"):
        engine.add(request("a", [1] * 10, max_tokens=7))


def test_the_queue_is_bounded_in_choices_and_tokens() -> None:
    engine = make_engine(max_num_seqs=2, max_num_queued_reqs=2, max_num_queued_tokens=40)
    engine.add(request("a", [1] * 30))
    with pytest.raises(
        RequestRefused, match="1 choices with 30 tokens are waiting, of at most 2 choices and 40 tokens"
    ):
        engine.add(request("b", [1] * 30))
    with pytest.raises(RequestRefused) as refused:  # two rows and two places in the queue, one of them taken
        engine.add(request("c", [1], n=4))
    assert refused.value.kind is Refusal.OVERLOADED
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1.0
    engine.add(request("d", [1], n=3))
    with pytest.raises(RequestRefused, match="4 choices"):
        engine.add(request("e", [1]))
    run(engine)
    engine.add(request("e", [1]))


def test_an_idle_engine_takes_work_whatever_the_queue_holds() -> None:
    engine = make_engine(max_num_seqs=2, max_num_queued_reqs=0)
    engine.add(request("a", [1]))
    engine.add(request("b", [1]))
    with pytest.raises(RequestRefused, match="of at most 0 choices"):
        engine.add(request("c", [1]))


def test_what_penalties_count_is_made_when_a_sequence_runs() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(request("a", [1], presence_penalty=1.0))
    engine.add(request("b", [1], presence_penalty=1.0))
    engine.step()
    made = [s.counts is not None for live in engine._live.values() for s in live.sequences.values()]
    assert made == [True, False]


def test_stop_tokens_that_leave_nothing_are_refused() -> None:
    engine = make_engine()
    with pytest.raises(RequestRefused, match="whole vocabulary"):
        engine.add(request("a", [1], min_tokens=1, stop_token_ids=tuple(range(VOCAB))))


def test_request_ids_are_unique_among_the_living() -> None:
    engine = make_engine()
    engine.add(request("a", [1]))
    with pytest.raises(RequestRefused, match="already in use"):
        engine.add(request("a", [2]))
    run(engine)
    engine.add(request("a", [2]))


def test_a_long_prompt_does_not_stop_a_short_one() -> None:
    engine = make_engine(num_pages=200, max_model_len=400, max_num_batched_tokens=16)
    engine.add(request("long", [1] * 300, max_tokens=1))
    engine.step()
    engine.add(request("short", [2] * 8, max_tokens=1))
    done = [output.request_id for _ in range(3) for output in engine.step()]
    assert done == ["short"]


def test_priority_goes_first_then_the_tenant_served_least() -> None:
    engine = make_engine(max_num_seqs=1)
    params = SamplingParams(max_tokens=2)
    waiting = [("greedy", 0, "a"), ("greedy2", 0, "a"), ("modest", 0, "b"), ("urgent", -1, "a")]
    for name, priority, tenant in waiting:
        engine.add(Request(request_id=name, prompt_token_ids=[1], params=params, priority=priority, tenant=tenant))
    order: list[str] = []
    while engine.has_work:
        order += [output.request_id for output in engine.step() if output.finish_reason]
    assert order == ["urgent", "modest", "greedy", "greedy2"]


# --- who may know of whom, and what is told once ----------------------------------------------------------------------


def test_tenants_do_not_share_the_prefix_cache() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=2, temperature=0.0)

    def cached(name: str, tenant: str, salt: str = "") -> int | None:
        engine.add(
            Request(request_id=name, prompt_token_ids=list(range(21)), params=params, tenant=tenant, cache_salt=salt)
        )
        return run(engine)[name, 0][0].cached_tokens

    assert cached("1", "alice") == 0
    assert cached("2", "bob") == 0
    assert cached("3", "alice") == 20
    assert cached("4", "alice", "x") == 0
    assert cached("5", "alicex") == 0  # tenant and salt are told apart
    assert cached("6", "") == 0


@pytest.mark.parametrize("delivered", [0, 1, 5])
def test_what_the_first_output_tells_is_told_once(delivered: int) -> None:
    prompt, params = list(range(9)), SamplingParams(max_tokens=8, temperature=0.0)
    engine = make_engine()
    whole = continuation(prompt, params)
    resumed = Request(
        request_id="it", prompt_token_ids=prompt, params=params, outputs={0: whole[:delivered]}, resumed=True
    )
    engine.add(resumed)
    outputs = engine.step()
    engine.scheduler._preempt(engine.scheduler.table.sequence(0))
    outputs += run(engine)["it", 0]
    assert tokens(outputs) == whole[delivered:]
    told = [output.cached_tokens is not None for output in outputs]
    assert told == [delivered == 0] + [False] * (len(outputs) - 1)
    for output, first in zip(outputs, told, strict=True):
        assert (output.queue_seconds is not None, output.prefill_seconds is not None) == (first, first)


# --- token ids that the model does not have ---------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(VOCAB,), (VOCAB + 1, 2**31), (-1,), (7, VOCAB)])
@pytest.mark.parametrize("min_tokens", [0, 1, 5])
def test_a_stop_token_that_cannot_be_drawn_stops_nothing(stop: tuple[int, ...], min_tokens: int) -> None:
    engine = make_engine()
    engine.add(
        request(
            "a", [1, 2], temperature=0.0, max_tokens=9, stop_token_ids=stop, min_tokens=min_tokens, logit_bias={7: 1.0}
        )
    )
    engine.add(request("b", [1, 2], temperature=0.0, max_tokens=9))
    outputs = run(engine)
    assert all(o.finish_reason is not FinishReason.ERROR for out in outputs.values() for o in out)
    assert all(token not in stop for token in tokens(outputs["a", 0])[:min_tokens])


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": {0: [VOCAB]}},
        {"outputs": {0: [-1]}},
        {"outputs": {0: [1] * 17}},
        {"params": SamplingParams(logit_bias={VOCAB: 1.0})},
        {"params": SamplingParams(logit_bias={-1: 1.0})},
    ],
    ids=str,
)
def test_ids_that_index_nothing_are_refused(changes: dict[str, object]) -> None:
    engine = make_engine()
    whole: dict[str, object] = {"prompt_token_ids": [1], "params": SamplingParams(), "resumed": True}
    with pytest.raises(RequestRefused) as refused:
        engine.add(Request(request_id="a", **(whole | changes)))  # type: ignore[arg-type]
    assert refused.value.kind is Refusal.INVALID
    assert not engine.has_work


def test_a_blocked_head_of_the_queue_does_not_look_up_its_prefix_again() -> None:
    engine = make_engine(num_pages=11, max_num_seqs=4, max_model_len=44)
    engine.add(request("runs", list(range(24)), max_tokens=20, temperature=0.0))
    for _ in range(3):
        engine.step()
    engine.add(request("waits", [*range(24), *range(16)], max_tokens=4, temperature=0.0))
    pool, looked_up = engine.scheduler.pool, [0]
    lookup = pool.lookup

    def count(key: bytes) -> int | None:
        looked_up[0] += 1
        return lookup(key)

    pool.lookup = count  # type: ignore[method-assign]
    engine.step()
    walked = looked_up[0]
    assert walked >= 6
    for _ in range(5):
        engine.step()
    assert looked_up[0] - walked <= 5
    outputs = run(engine)
    for name, prompt, number in (("runs", list(range(24)), 20), ("waits", [*range(24), *range(16)], 4)):
        assert (
            tokens(outputs[name, 0])[-4:]
            == continuation(prompt, SamplingParams(max_tokens=number, temperature=0.0))[-4:]
        )
