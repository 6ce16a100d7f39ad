"""Steps are transactions: whatever fails on the way, what was committed is never repeated and nobody else notices."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest

from octavo.backends.protocol import Batch, Executor, StepResult
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, Output, Request, SamplingParams
from octavo.engine.sequence import Sequence
from tests.engine.toy import ToyExecutor, continuation

POISON = 39
"""The token that marks the request which breaks; no other prompt has it, and none generates it."""

# What is told of a choice: tokens, log-probabilities of the output and of the prompt, the reason it ended.
Trace = tuple[list[int], list[object], list[object], FinishReason | None]


@dataclass
class Computed:
    """A step that raises when it is waited for, if it is to."""

    value: StepResult
    raises: bool = False

    def result(self) -> StepResult:
        if self.raises:
            raise RuntimeError("the device was lost")
        return self.value


@dataclass
class Faulty:
    """An executor that fails in the way named, in steps that the poisoned request takes part in.

    `skip`: so many of its steps go well first. `times`: so many fail.
    """

    inner: ToyExecutor
    fault: str
    skip: int = 0
    times: int = 10**9
    seen: int = field(default=0, init=False)

    num_pages = property(lambda self: self.inner.num_pages)
    page_size = property(lambda self: self.inner.page_size)
    vocab_size = property(lambda self: self.inner.vocab_size)

    def submit(self, batch: Batch) -> Computed:
        owners = np.searchsorted(batch.query_starts, batch.logits.rows, side="right") - 1
        poisoned = [self._has_poison(batch, place) for place in range(len(batch.table_rows))]
        fails = False
        if any(poisoned):
            self.seen += 1
            fails = self.skip < self.seen <= self.skip + self.times
        if fails and self.fault == "before":
            raise MemoryError
        result = self.inner.submit(batch).result()
        if fails and self.fault == "after":
            raise ValueError("the kernel failed")
        if fails and self.fault == "short":
            # As many log-probabilities as there are rows before the poisoned one: whoever collects them meets an error.
            first = next((i for i, owner in enumerate(owners) if poisoned[owner]), None)
            if first is not None:
                result = replace(result, logprobs=result.logprobs[:first])
        return Computed(result, fails and self.fault == "result")

    def _has_poison(self, batch: Batch, place: int) -> bool:
        pages = batch.page_table[batch.table_rows[place]]
        first, last = batch.query_starts[place : place + 2]
        before = int(batch.positions[first])
        context = self.inner.memory[pages].reshape(-1)[:before]
        return POISON in context or POISON in batch.tokens[first:last]


def engine_on(executor: Executor, **settings: int) -> Engine:
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 16}
    config = EngineConfig(model="toy", page_size=executor.page_size, **(defaults | settings))  # type: ignore[arg-type]
    return Engine(executor, config, max_model_len=64)


def requests(*, poison: bool = True) -> list[Request]:
    """Prompts that share pages, choices, scored prompts, penalties; and the one that breaks."""

    def request(name: str, prompt: list[int], **params: object) -> Request:
        bias = {POISON: -100.0}
        return Request(
            request_id=name,
            prompt_token_ids=prompt,
            params=SamplingParams(logit_bias=bias, **params),  # type: ignore[arg-type]
        )

    some = [
        request("plain", [1, 2, 3], max_tokens=12, logprobs=2, seed=1),
        request("choices", list(range(9)), n=3, max_tokens=10, logprobs=0, seed=2),
        request("poison", [4, POISON, 5, 6, 7], max_tokens=12, logprobs=1, seed=3),
        request("scored", list(range(11)), max_tokens=6, logprobs=1, prompt_logprobs=2, seed=4),
        request("greedy", list(range(9)), max_tokens=14, temperature=0.0, presence_penalty=0.5, logprobs=1),
    ]
    return [one for one in some if poison or one.request_id != "poison"]


def traces(engine: Engine, found: dict[tuple[str, int], Trace] | None = None) -> dict[tuple[str, int], Trace]:
    """Step until nothing is left; what every choice was told, added to what is `found` already."""
    found = {} if found is None else found
    for _ in range(1000):
        if not engine.has_work:
            break
        note(found, engine.step())
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.used_count == 0
    return found


def note(found: dict[tuple[str, int], Trace], outputs: list[Output]) -> None:
    for output in outputs:
        tokens, logprobs, prompt, reason = found.get((output.request_id, output.index), ([], [], [], None))
        assert reason is None, "output after the end"
        found[output.request_id, output.index] = (
            tokens + output.token_ids,
            logprobs + (output.logprobs or []),
            prompt + list(output.prompt_logprobs or []),
            output.finish_reason,
        )


def undisturbed(settings: dict[str, int]) -> dict[tuple[str, int], Trace]:
    return _undisturbed(tuple(settings.items()))


@cache
def _undisturbed(items: tuple[tuple[str, int], ...]) -> dict[tuple[str, int], Trace]:
    settings = dict(items)
    engine = engine_on(ToyExecutor(**pages_of(settings)), **seats_of(settings))
    for request in requests(poison=False):
        engine.add(request)
    return traces(engine)


def pages_of(settings: dict[str, int]) -> dict[str, int]:
    return {"num_pages": 64} | {name: settings[name] for name in ("num_pages", "page_size") if name in settings}


def seats_of(settings: dict[str, int]) -> dict[str, int]:
    return {name: settings[name] for name in settings if name not in ("num_pages", "page_size")}


SETTINGS = [{}, {"num_pages": 12}, {"page_size": 1, "num_pages": 100}, {"max_num_seqs": 3}, {"page_size": 16}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("fault", ["before", "after", "result", "short"])
@pytest.mark.parametrize("skip", [0, 1, 4])
def test_who_breaks_a_step_ends_alone(settings: dict[str, int], fault: str, skip: int) -> None:
    engine = engine_on(Faulty(ToyExecutor(**pages_of(settings)), fault, skip), **seats_of(settings))
    for request in requests():
        engine.add(request)
    found = traces(engine)
    assert found.pop(("poison", 0))[3] is FinishReason.ERROR
    assert found == undisturbed(settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("fault", ["before", "after", "result"])
@pytest.mark.parametrize("skip", [0, 2, 5])
def test_a_step_that_fails_once_is_computed_again(settings: dict[str, int], fault: str, skip: int) -> None:
    engine = engine_on(Faulty(ToyExecutor(**pages_of(settings)), fault, skip, times=1), **seats_of(settings))
    for request in requests():
        engine.add(request)
    found = traces(engine)
    alone = engine_on(ToyExecutor(64))
    for request in requests():
        alone.add(request)
    expected = traces(alone)
    if found["poison", 0][3] is FinishReason.ERROR:  # it was alone in its step: nobody else can have broken it
        del found["poison", 0], expected["poison", 0]
    assert found == expected


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_error_while_outputs_are_collected_ends_its_request_alone(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Sequence.append

    def fail(sequence: Sequence, *args: object) -> None:
        if sequence.request.request_id == "poison" and sequence.num_outputs == 3:
            raise IndexError("no room")
        append(sequence, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Sequence, "append", fail)
    engine = engine_on(ToyExecutor(**pages_of(settings)), **seats_of(settings))
    for request in requests():
        engine.add(request)
    found = traces(engine)
    assert found.pop(("poison", 0))[3] is FinishReason.ERROR
    assert found == undisturbed(settings)


def test_a_step_takes_effect_once() -> None:
    engine = engine_on(ToyExecutor(64))
    for request in requests(poison=False):
        engine.add(request)
    expected = undisturbed({})
    found: dict[tuple[str, int], Trace] = {}
    while engine.has_work:
        step = engine.scheduler.plan(0.0)
        assert step is not None
        ((part, accepted),) = engine.compute(step)
        note(found, engine.commit(part, accepted))
        assert engine.commit(part, accepted) == []
    assert found == expected


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_plan_that_is_never_computed_changes_nothing(settings: dict[str, int]) -> None:
    engine = engine_on(ToyExecutor(**pages_of(settings)), **seats_of(settings))
    for request in requests(poison=False):
        engine.add(request)
    found: dict[tuple[str, int], Trace] = {}
    while engine.has_work:
        engine.scheduler.plan(0.0)
        abandoned = engine.scheduler.plan(0.0)
        if abandoned is not None:
            engine.compute(abandoned)
        note(found, engine.step())
    assert found == undisturbed(settings)


@dataclass
class Interrupted:
    """An executor during whose step of the given number `happens` is called; then the step may fail, unless it is one
    sequence's alone, which would be to blame."""

    inner: ToyExecutor
    number: int
    happens: Callable[[], None] = field(default=lambda: None)
    fails: bool = False
    submitted: int = field(default=0, init=False)

    num_pages = property(lambda self: self.inner.num_pages)
    page_size = property(lambda self: self.inner.page_size)
    vocab_size = property(lambda self: self.inner.vocab_size)

    def submit(self, batch: Batch) -> Computed:
        result = self.inner.submit(batch).result()
        interrupted = self.submitted == self.number
        self.submitted += 1
        if interrupted:
            self.happens()
        return Computed(result, raises=interrupted and self.fails and len(batch.table_rows) > 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("name", "index"), [("choices", 0), ("choices", 1), ("choices", None), ("scored", None)])
@pytest.mark.parametrize("when", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("fails", [False, True])
def test_an_abort_while_a_step_is_computed_drops_what_comes_of_it(
    settings: dict[str, int], name: str, index: int | None, when: int, fails: bool
) -> None:
    executor = Interrupted(ToyExecutor(**pages_of(settings)), when, fails=fails)
    engine = engine_on(executor, **seats_of(settings))
    found: dict[tuple[str, int], Trace] = {}
    executor.happens = lambda: engine.abort(name, index)
    for request in requests(poison=False):
        engine.add(request)
    traces(engine, found)
    for key, expected in undisturbed(settings).items():
        if key[0] != name or index not in (None, key[1]):
            assert found[key] == expected


def accepting(engine: Engine, accept: Callable[[int, list[int]], list[int]]) -> list[Output]:
    """A step in which every sequence that drew a token accepts what `accept` makes of it, from its place and token."""
    step = engine.scheduler.plan(0.0)
    assert step is not None
    ((part, accepted),) = engine.compute(step)
    accepted.tokens = [accept(place, tokens) if tokens else [] for place, tokens in enumerate(accepted.tokens)]
    return engine.commit(part, accepted)


@pytest.mark.parametrize("page_size", [1, 2, 4, 16])
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 3])
def test_several_tokens_of_a_sequence_are_accepted_in_a_step(page_size: int, count: int, n: int) -> None:
    """As a grammar forces them: the engine was told the next `count` tokens, and computes them like a prompt."""
    prompt, params = [1, 2, 3, 4, 5], SamplingParams(max_tokens=20, seed=9, n=n)
    engine = engine_on(ToyExecutor(64, page_size))
    engine.add(Request(request_id="it", prompt_token_ids=prompt, params=params))
    whole = [continuation(prompt, params, index) for index in range(n)]
    outputs: dict[int, list[int]] = {index: [] for index in range(n)}
    while engine.has_work:
        table = engine.scheduler.table
        step = engine.scheduler.plan(0.0)
        assert step is not None
        ((part, accepted),) = engine.compute(step)
        for place, row in enumerate(step.rows):
            sequence = table.sequence(int(row))
            if accepted.tokens[place]:
                done = sequence.num_outputs
                assert accepted.tokens[place] == whole[sequence.index][done : done + 1]
                accepted.tokens[place] = whole[sequence.index][done : done + count]
        for output in engine.commit(part, accepted):
            assert len(output.token_ids) <= count
            outputs[output.index] += output.token_ids
    assert list(outputs.values()) == whole
    assert engine.scheduler.pool.used_count == 0


def test_tokens_after_the_end_are_not_accepted() -> None:
    engine = engine_on(ToyExecutor(64))
    params = SamplingParams(max_tokens=4, temperature=0.0, stop_token_ids=(7,))
    engine.add(Request(request_id="stop", prompt_token_ids=[1, 2], params=params))
    engine.add(Request(request_id="long", prompt_token_ids=[3, 4], params=params))
    outputs = accepting(engine, lambda place, _: [[5, 7, 9], [5, 6, 8, 9, 10]][place])
    assert [output.token_ids for output in outputs] == [[5, 7], [5, 6, 8, 9]]
    assert [output.finish_reason for output in outputs] == [FinishReason.STOP, FinishReason.LENGTH]
    assert engine.scheduler.pool.used_count == 0


def test_only_pages_of_accepted_tokens_become_findable() -> None:
    """Four tokens were computed as drafts would be, and one accepted: the page they filled is not the prefix's."""
    executor = ToyExecutor(64, page_size=4)
    engine = engine_on(executor)
    params = SamplingParams(max_tokens=12, temperature=0.0)
    prompt = [1, 2, 3, 4, 5]
    engine.add(Request(request_id="it", prompt_token_ids=prompt, params=params))
    engine.step()
    scheduler = engine.scheduler
    sequence = scheduler.table.sequence(0)
    assert int(scheduler.table.computed[0]) == 5
    scheduler.table.add_page(sequence, scheduler.pool.allocate())
    rows, counts = np.array([0], np.int32), np.array([4], np.int32)
    scheduler.table.append(sequence, [11])
    scheduler.commit(rows, counts)
    assert int(scheduler.table.computed[0]) == 6
    assert sequence.published == 1
    scheduler.table.append(sequence, [12, 13])
    scheduler.commit(rows, counts)
    assert int(scheduler.table.computed[0]) == 8
    assert sequence.published == 2
