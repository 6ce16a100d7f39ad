"""Constrained requests: the contract of determinism holds for them, and nobody waits for somebody else's grammar."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from octavo.backends.protocol import Batch, Pending
from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, Output, Request, SamplingParams
from octavo.grammar import constraint, matcher
from octavo.grammar.matcher import Matcher
from octavo.text.tokenizer import Tokenizer
from tests.engine.test_determinism import engine_for, others

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 6},
        "quick": {"type": "boolean"},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
        "the_lazy_dog": {"enum": ["jumps over", "serving many models"]},
    },
    "required": ["title", "quick", "numbers", "the_lazy_dog"],
    "additionalProperties": False,
}
JSON = constraint.json_schema(SCHEMA, "schema").source
LETTERS = constraint.regex("[a-z ]{1,200}", "regex").source
PROMPT = np.random.default_rng(5).integers(3, 300, 45).tolist()
PARAMS = SamplingParams(
    max_tokens=150, seed=3, temperature=0.9, frequency_penalty=0.1, grammar=JSON, stop_token_ids=(2,)
)
Told = dict[int, list[Output]]


def the_request(params: SamplingParams = PARAMS, **changes: object) -> Request:
    return Request(request_id="it", prompt_token_ids=PROMPT, params=params, **changes)  # type: ignore[arg-type]


def compiled(engine: Engine) -> None:
    """Wait for the grammars of requests that are held."""
    for held in engine._held:
        held.compiled.exception()


def run(engine: Engine, request: Request, while_running: Callable[[int], None] = lambda step: None) -> Told:
    """Run the engine until it is empty; what it told of `request`, by choice."""
    engine.add(request)
    compiled(engine)
    told: Told = {}
    step = 0
    while engine.has_work:
        while_running(step)
        compiled(engine)
        for output in engine.step():
            if output.request_id == request.request_id:
                told.setdefault(output.index, []).append(output)
        step += 1
    return told


def tokens(told: Told, index: int = 0) -> list[int]:
    return [token for output in told[index] for token in output.token_ids]


def text(tokenizer: Tokenizer, told: Told, index: int = 0) -> str:
    return tokenizer.decode([token for token in tokens(told, index) if token != 2])


@pytest.fixture(scope="module")
def alone(make: Callable[..., Engine]) -> list[int]:
    """The request by itself: what all others are held against."""
    found = tokens(run(make(), the_request()))
    assert len(found) > 40
    return found


def test_the_answer_is_valid_and_complete(make: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    told = run(make(), the_request())
    jsonschema.validate(json.loads(text(tokenizer, told)), SCHEMA)
    assert told[0][-1].finish_reason is FinishReason.STOP
    assert max(len(output.token_ids) for output in told[0]) > 3, "what a grammar leaves no choice about comes at once"


def test_forced_tokens_are_those_that_would_be_drawn(make: Callable[..., Engine], alone: list[int]) -> None:
    told = run(make(), the_request(replace(PARAMS, logprobs=2)))
    assert {len(output.token_ids) for output in told[0]} == {1}
    assert tokens(told) == alone


def test_in_a_batch_with_and_without_grammars(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make()
    others(engine, 10, seed=2)
    for number in range(12):
        params = SamplingParams(max_tokens=30, seed=number, grammar=LETTERS if number % 2 else JSON)
        engine.add(Request(request_id=f"other {number}", prompt_token_ids=PROMPT[number:], params=params))
    assert tokens(run(engine, the_request())) == alone


@pytest.mark.parametrize("budget", [1, 7])
def test_chunked(make: Callable[..., Engine], alone: list[int], budget: int) -> None:
    assert tokens(run(make(max_num_batched_tokens=budget, max_num_seqs=1), the_request())) == alone


def test_preempted(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make(pages=14)
    for number in range(3):
        params = SamplingParams(max_tokens=70, seed=number, grammar=LETTERS)
        engine.add(Request(request_id=f"other {number}", prompt_token_ids=PROMPT[number : number + 30], params=params))
    assert tokens(run(engine, the_request())) == alone
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("delivered", [1, 2, 5, 6, 7, 8, 9, 20, 33, 40])
def test_resumed_after_any_token(make: Callable[..., Engine], alone: list[int], delivered: int) -> None:
    resumed = the_request(outputs={0: alone[:delivered]}, resumed=True)
    assert alone[:delivered] + tokens(run(make(), resumed)) == alone


def test_several_choices(make: Callable[..., Engine], tokenizer: Tokenizer, alone: list[int]) -> None:
    told = run(make(), the_request(replace(PARAMS, n=4)))
    assert tokens(told, 0) == alone
    assert len({text(tokenizer, told, index) for index in told}) == 4
    for index in told:
        jsonschema.validate(json.loads(text(tokenizer, told, index)), SCHEMA)
        assert tokens(run(make(), the_request(replace(PARAMS, seed=PARAMS.seed + index)))) == tokens(told, index)


def test_cut_by_max_tokens_in_the_middle_of_what_is_forced(make: Callable[..., Engine], alone: list[int]) -> None:
    for most in range(1, 16):
        told = run(make(), the_request(replace(PARAMS, max_tokens=most)))
        assert tokens(told) == alone[:most]
        assert told[0][-1].finish_reason is FinishReason.LENGTH


def test_a_stop_token_among_forced_ones(make: Callable[..., Engine], alone: list[int]) -> None:
    forced = next(output for output in run(make(), the_request())[0] if len(output.token_ids) > 2)
    stop = forced.token_ids[1]
    told = run(make(), the_request(replace(PARAMS, stop_token_ids=(2, stop))))
    assert tokens(told) == alone[: alone.index(stop) + 1]
    assert told[0][-1].finish_reason is FinishReason.STOP


def test_the_end_where_the_grammar_allows_it(make: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    """Where more could follow it is the model that ends, with one of its own tokens."""
    bias = {2: 100.0}
    told = run(
        make(), the_request(SamplingParams(max_tokens=50, grammar=LETTERS, logit_bias=bias, stop_token_ids=(2,)))
    )
    assert len(tokens(told)) == 2
    assert tokens(told)[-1] == 2
    assert text(tokenizer, told)


class Breaking:
    """An executor of which some steps fail, before or after they were computed."""

    def __init__(self, engine: Engine, broken: set[int]) -> None:
        self._inner, self._broken, self._steps = engine.executor, broken, 0
        self.num_pages, self.page_size, self.vocab_size = (
            engine.executor.num_pages,
            engine.executor.page_size,
            engine.executor.vocab_size,
        )

    def submit(self, batch: Batch, masks_written: Callable[[], object] | None = None) -> Pending:
        self._steps += 1
        if self._steps in self._broken and self._steps % 2:
            raise MemoryError
        pending = self._inner.submit(batch, masks_written)
        if self._steps in self._broken:
            raise RuntimeError("the device was lost")
        return pending


def test_a_step_that_is_computed_again_in_halves(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make()
    engine.executor = Breaking(engine, {4, 9, 14, 19})
    for number in range(3):
        params = SamplingParams(max_tokens=40, seed=number, grammar=LETTERS)
        engine.add(Request(request_id=f"other {number}", prompt_token_ids=PROMPT[number:], params=params))
    compiled(engine)
    assert tokens(run(engine, the_request())) == alone


def test_nobody_waits_for_a_grammar_of_another_one(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make()
    begun, may_end, woken = threading.Event(), threading.Event(), threading.Event()
    inner = engine.grammars._compile

    def slow(source: str) -> Matcher:
        begun.set()
        may_end.wait()
        return inner(source)

    engine.grammars._compile = slow  # type: ignore[method-assign]
    engine.grammars.wake = woken.set
    engine.add(the_request())
    begun.wait()
    assert not engine.has_work
    engine.add(Request(request_id="free", prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=5)))
    while engine.has_work:
        engine.step()
    assert engine.is_live("it")
    assert not engine.is_live("free")
    engine.add(replace(the_request(), request_id="left"))
    engine.abort("left")
    may_end.set()
    assert woken.wait(30)
    told = [output for _ in range(200) if engine.has_work for output in engine.step()]
    assert [token for output in told for token in output.token_ids] == alone
    assert engine.stats().kv_usage == 0


def test_a_grammar_that_is_wrong_fails_its_request_alone(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make()
    engine.add(replace(the_request(replace(PARAMS, grammar="start: x", n=2)), request_id="wrong"))
    engine.add(replace(the_request(outputs={0: [5, 6]}), request_id="changed"))
    outputs: dict[str, list[Output]] = {}
    compiled(engine)
    engine.add(the_request())
    while engine.has_work:
        compiled(engine)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert [output.error for output in outputs["wrong"]] == ['at 1(8): unknown name: "x"'] * 2
    assert [output.finish_reason for output in outputs["changed"]] == [FinishReason.ERROR]
    assert [token for output in outputs["it"] for token in output.token_ids] == alone


def test_masks_that_take_too_long_fail_their_request_alone(make: Callable[..., Engine], alone: list[int]) -> None:
    """What is too ambiguous comes out only as it is followed."""
    engine = make()
    hard = "start: (A | B)*\nA: /[a-z ]{0,900}x[a-z ]{400}/\nB: /[a-z ]{0,900}[a-y ]x?[a-z ]{300}/"
    engine.add(Request(request_id="hard", prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=100, grammar=hard)))
    assert tokens(run(engine, the_request())) == alone


def test_the_vocabulary_comes_first(tiny_model: Path) -> None:
    engine = engine_for(tiny_model, "reference")
    told = run(engine, the_request())
    assert [output.error for output in told[0]] == ["nobody has said what the model's tokens are"]


def test_futures_are_kept_by_grammar(make: Callable[..., Engine]) -> None:
    grammars = make().grammars
    first: Future[Matcher] = grammars.compile(JSON)
    assert grammars.compile(JSON) is first
    assert grammars.compile(LETTERS) is not first


def test_a_resumed_request_that_its_grammar_refuses_fails(make: Callable[..., Engine], alone: list[int]) -> None:
    engine = make()
    assert tokens(run(engine, the_request())) == alone
    told = run(engine, the_request(outputs={0: [5, 6]}, resumed=True))  # its grammar is compiled already
    assert [output.finish_reason for output in told[0]] == [FinishReason.ERROR]
    assert not engine.has_work


def test_long_grammars_push_each_other_out(make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matcher, "CACHED_CHARACTERS", 3 * len(JSON))
    grammars = make().grammars
    first = grammars.compile(JSON)
    for number in range(4):
        grammars.compile(JSON + " " * number)
    assert grammars.compile(JSON) is not first
