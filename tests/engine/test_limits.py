"""Tokens that are not to be drawn: kept to, and the contract of determinism holds with them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from octavo.engine.engine import Engine
from octavo.engine.limits import mask
from octavo.engine.request import FinishReason, Refusal, Request, RequestRefused, SamplingParams, ThinkingBudget
from octavo.text.tokenizer import Tokenizer
from tests.engine.test_determinism import engine_for, others
from tests.engine.test_grammars import LETTERS, PROMPT, run, tokens

ALLOWED = tuple(np.random.default_rng(3).choice(np.arange(3, 300), 12, replace=False).tolist())
PLAIN = SamplingParams(max_tokens=60, seed=3, temperature=1.3)
FEW = replace(PLAIN, allowed_token_ids=ALLOWED)
# Of the few, single ones and those that follow on one another.
BANNED = ((ALLOWED[0],), (ALLOWED[1], ALLOWED[2]), (ALLOWED[3], ALLOWED[3]), (ALLOWED[4], ALLOWED[5], ALLOWED[6]))
BOTH = replace(FEW, bad_words=BANNED)
END = tuple(range(200, 204))
THINKING = ThinkingBudget(tokens=17, begun=True, opens=(b"<think>",), closes=(b"</think>",), end=END)
KINDS = {
    "thinking": replace(PLAIN, thinking=THINKING),
    "thinking and both": replace(BOTH, thinking=THINKING, logprobs=2),
    "allowed": FEW,
    "bad words": replace(PLAIN, top_k=5, bad_words=tuple((a, b) for a in ALLOWED for b in range(3, 300, 2))),
    "both": BOTH,
    "with minimum": replace(BOTH, min_tokens=20, stop_token_ids=ALLOWED[-1:], logit_bias={ALLOWED[-1]: 5.0}),
}


def the_request(params: SamplingParams, **changes: object) -> Request:
    return Request(request_id="it", prompt_token_ids=PROMPT, params=params, **changes)  # type: ignore[arg-type]


def test_they_are_kept_to(make: Callable[..., Engine]) -> None:
    free = tokens(run(make(), the_request(FEW)))
    assert set(free) <= set(ALLOWED)
    assert len(set(free)) > 5
    seen = {word for word in BANNED if any(tuple(free[at : at + len(word)]) == word for at in range(len(free)))}
    assert len(seen) > 1, "without the ban they come"
    held = tokens(run(make(), the_request(BOTH)))
    assert set(held) <= set(ALLOWED) - {ALLOWED[0]}
    assert not {(ALLOWED[1], ALLOWED[2]), (ALLOWED[3], ALLOWED[3])} & set(pairwise(held))
    assert ALLOWED[1] in held
    assert ALLOWED[2] in held, "it may come after others"


def test_what_does_not_come_changes_nothing(make: Callable[..., Engine]) -> None:
    greedy = replace(PLAIN, temperature=0.0)
    free = tokens(run(make(), the_request(greedy)))
    absent = tuple((token, token) for token in range(3, 300) if (token, token) not in set(pairwise(free)))
    assert tokens(run(make(), the_request(replace(greedy, bad_words=absent)))) == free
    everything = tuple(range(make().executor.vocab_size))
    free = tokens(run(make(), the_request(PLAIN)))
    assert tokens(run(make(), the_request(replace(PLAIN, allowed_token_ids=everything)))) == free


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens(make: Callable[..., Engine], kind: str) -> None:
    """In a batch, in small pieces, preempted, resumed after any token, as one of several choices: the same tokens."""
    params = KINDS[kind]
    alone = tokens(run(make(), the_request(params)))
    crowded = make()
    others(crowded, 10, seed=2)
    for number, other in enumerate((FEW, PLAIN, replace(BOTH, grammar=LETTERS), replace(PLAIN, grammar=LETTERS))):
        crowded.add(Request(request_id=f"limited {number}", prompt_token_ids=PROMPT[number:], params=other))
    assert tokens(run(crowded, the_request(params))) == alone
    assert tokens(run(make(max_num_batched_tokens=7, max_num_seqs=1), the_request(params))) == alone
    narrow = make(pages=14)
    for number in range(3):
        other = replace(PLAIN, max_tokens=70, seed=number)
        narrow.add(Request(request_id=f"other {number}", prompt_token_ids=PROMPT[number : number + 30], params=other))
    assert tokens(run(narrow, the_request(params))) == alone
    assert narrow.stats().preemptions > 0
    for delivered in (1, 2, 19, 21):
        if delivered < len(alone):
            resumed = the_request(params, outputs={0: alone[:delivered]}, resumed=True)
            assert alone[:delivered] + tokens(run(make(), resumed)) == alone
    several = run(make(), the_request(replace(params, n=3)))
    assert tokens(several, 0) == alone
    assert tokens(several, 2) == tokens(run(make(), the_request(replace(params, seed=params.seed + 2))))


def test_with_a_grammar(make: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    """Both hold; and what a grammar would have left no choice about is not committed against a ban."""
    letters = tuple(n for n in range(3, 300) if set(tokenizer.decode([n])) <= set("abcdefgh "))
    params = SamplingParams(max_tokens=40, seed=1, temperature=1.5, grammar=LETTERS, stop_token_ids=(2,))
    told = run(make(), the_request(replace(params, allowed_token_ids=(*letters, 65, 2))))
    assert set(tokens(told)) <= {*letters, 2}
    forced = 'start: "ab" /[xy]/'
    bans = tuple(tuple(way) for way in tokenizer.spellings("abx"))
    told = run(make(), the_request(replace(params, grammar=forced, bad_words=bans)))
    assert "abx" not in tokenizer.decode(tokens(told))


def test_nothing_left(make: Callable[..., Engine]) -> None:
    """It fails alone, with the reason."""
    one = replace(PLAIN, allowed_token_ids=(7,), bad_words=((7, 7),))
    engine = make()
    told = run(engine, the_request(one))
    assert [output.finish_reason for output in told[0]] == [None, FinishReason.ERROR]
    assert told[0][-1].error == "allowed_token_ids and bad_words leave no token to draw after 1 token of the answer"
    assert told[0][-1].refused


def test_ids_that_index_nothing(make: Callable[..., Engine]) -> None:
    for wrong in (replace(PLAIN, allowed_token_ids=(5, 10_000)), replace(PLAIN, bad_words=((5, -1),))):
        with pytest.raises(RequestRefused) as refused:
            make().add(the_request(wrong))
        assert refused.value.kind is Refusal.INVALID


def test_masks_are_bits() -> None:
    bits = np.unpackbits(mask((0, 31, 32, 95, 64), 96).view(np.uint8), bitorder="little")
    assert bits.nonzero()[0].tolist() == [0, 31, 32, 64, 95]


def test_thinking_ends_with_its_budget(make: Callable[..., Engine]) -> None:
    free = tokens(run(make(), the_request(PLAIN)))
    for budget in (0, 1, 17, 58, 59, 60):
        params = replace(PLAIN, thinking=replace(THINKING, tokens=budget), logprobs=0)
        told = run(make(), the_request(params))
        held = tokens(told)
        assert held[:budget] == free[:budget]
        assert held[budget:][: len(END)] == list(END)[: PLAIN.max_tokens - budget]
        assert len(held) == PLAIN.max_tokens
        assert END[:2] not in set(pairwise(held[budget + len(END) :])), "once"
        # What is forced has the model's own log-probability, which is not that of certainty.
        scores = [entry.logprob for output in told[0] for entry in output.logprobs or ()]
        assert len(scores) == len(held)
        assert all(score < -0.1 for score in scores[budget : budget + len(END)])


def test_who_does_not_think_is_let_alone(make: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    end = tuple(tokenizer.encode_within("</think>"))
    budget = replace(THINKING, tokens=3, end=end)
    free = tokens(run(make(), the_request(PLAIN)))
    assert tokens(run(make(), the_request(replace(PLAIN, thinking=replace(budget, begun=False))))) == free
    for grammar, begun in (
        ('start: "a</think>" /[a-z]{40}/', True),
        ('start: "b" /[a-z]{40}/', False),
        ('start: " <think>a</think>" /[a-z]{40}/', False),
    ):
        params = SamplingParams(max_tokens=50, seed=1, grammar=grammar, stop_token_ids=(2,))
        without = run(make(), the_request(params))
        more = replace(budget, tokens=8 if "<think>" in grammar else 3, begun=begun)
        if "<think>" in grammar:
            more = replace(more, tokens=len(tokenizer.encode(" <think>a</think>")) + 2)
        elif begun:
            more = replace(more, tokens=len(tokenizer.encode("a</think>")) + 2)
        assert tokens(run(make(), the_request(replace(params, thinking=more)))) == tokens(without)


def test_a_grammar_follows_what_is_forced(make: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    grammar = 'start: "<think>" /[a-z ]{0,90}/ "</think>" /[xyz]{5,9}/'
    end = tuple(tokenizer.encode_within("</think>"))
    params = SamplingParams(max_tokens=80, seed=1, temperature=1.2, grammar=grammar, stop_token_ids=(2,))
    for budget in (0, 10, 20):
        thinking = ThinkingBudget(tokens=budget, begun=False, opens=(b"<think>",), closes=(b"</think>",), end=end)
        told = run(make(), the_request(replace(params, thinking=thinking)))
        said = tokenizer.decode([token for token in tokens(told) if token != 2])
        thought, _, answer = said.removeprefix("<think>").partition("</think>")
        assert set(answer) <= set("xyz")
        assert 5 <= len(answer) <= 9
        opening = len(tokenizer.encode("<think>"))
        assert len(tokenizer.encode_within(thought)) <= max(budget - opening, 0) + 2
        assert told[0][-1].finish_reason is FinishReason.STOP
        alone = tokens(told)
        for delivered in range(1, len(alone), 5):
            resumed = the_request(replace(params, thinking=thinking), outputs={0: alone[:delivered]}, resumed=True)
            assert alone[:delivered] + tokens(run(make(), resumed)) == alone


def test_budgets_need_the_vocabulary(tiny_model: Path) -> None:
    with pytest.raises(RequestRefused, match="what the model's tokens are"):
        engine_for(tiny_model, "reference").add(the_request(replace(PLAIN, thinking=THINKING)))
