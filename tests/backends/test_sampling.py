"""The sampler against transformers' logits processors, known answers, and frequencies."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from octavo.backends.protocol import NOT_FINITE, NOTHING_ALLOWED
from octavo.backends.reference.sampling import _distribution, adjust, philox, sample, uniform
from tests.backends.batches import Change, changed, rows
from tests.properties import examples

VOCAB = 97


def test_philox_known_answers() -> None:
    # Random123, kat_vectors: philox4x32 10 with counter and key all zero, and all ones in the words we use.
    zeros = np.zeros(1, np.uint64)
    assert [f"{word:08x}" for word in philox(zeros, zeros)[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_position() -> None:
    numbers = uniform(np.full(20_000, 7, np.uint64), np.arange(20_000))
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
    assert len(np.unique(numbers)) == len(numbers)
    assert not np.any(numbers == uniform(np.full(20_000, 8, np.uint64), np.arange(20_000)))


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.1, 2.0),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.05, 1.0),
    typical_p=st.one_of(st.just(1.0), st.floats(0.05, 0.99)),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_truncation_is_that_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, typical_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32) * 4
    scores = torch.tensor(logits, dtype=torch.float64)[None] / temperature
    ids = torch.zeros((1, 1), dtype=torch.long)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if typical_p < 1:
        scores = TypicalLogitsWarper(typical_p)(ids, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    kept, weights = _distribution(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, typical_p=typical_p, min_p=min_p
    )
    assert list(kept) == list(np.flatnonzero(expected > 0))
    assert np.allclose(weights / weights.sum(), expected[kept], rtol=1e-6)


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    count = 20_000
    drawn = sample(np.tile(logits, (count, 1)), rows(count, seeds=3)).tokens
    observed = np.bincount(drawn, minlength=4)
    expected = np.exp(logits) * count
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


def test_repetition_penalty_is_that_of_transformers() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=VOCAB).astype(np.float32)
    prompt, output = [1, 5, 9], [5, 20, 20]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), torch.tensor(logits)[None])
    seen = {token: output.count(token) for token in prompt + output}
    found = adjust(logits, changed(rows(1), {0: Change(seen=seen, repetition=1.7)}, VOCAB), 0)
    assert np.array_equal(found, expected[0].numpy())


def test_presence_and_frequency_penalties_bias_and_bans() -> None:
    change = Change(seen={0: 0, 1: 1, 2: 3}, frequency=0.5, presence=1.0, biases={3: 2.5, 0: -np.inf})
    assert adjust(np.zeros(4, np.float32), changed(rows(1), {0: change}, 4), 0).tolist() == [-np.inf, -1.5, -2.5, 2.5]


def test_a_row_is_changed_by_what_is_its_own() -> None:
    changes = {1: Change(seen={2: 1}, presence=1.0), 2: Change(biases={0: 3.0}), 4: Change(allowed=[1, 33])}
    wanted = changed(rows(5), changes, 40)
    for row in (0, 3):
        assert adjust(np.zeros(40, np.float32), wanted, row).tolist() == [0.0] * 40
    assert np.flatnonzero(adjust(np.zeros(40, np.float32), wanted, 1)).tolist() == [2]
    assert np.flatnonzero(adjust(np.zeros(40, np.float32), wanted, 2)).tolist() == [0]
    assert np.flatnonzero(adjust(np.zeros(40, np.float32), wanted, 4) == 0).tolist() == [1, 33]


def test_logprobs_are_the_models_own_whatever_mask_biases_and_penalties_do() -> None:
    logits = np.random.default_rng(1).normal(size=(1, VOCAB)).astype(np.float32)
    change = Change(seen={5: 2}, frequency=1.0, biases={6: 9.0}, allowed=[5, 6, 7])
    found = sample(logits, changed(rows(1, num_logprobs=VOCAB), {0: change}, VOCAB))
    assert found.tokens[0] in (5, 6, 7)
    expected = torch.log_softmax(torch.tensor(logits[0], dtype=torch.float64), -1).numpy()
    assert found.logprobs[0] == pytest.approx(expected[found.tokens[0]], abs=1e-5)
    assert np.allclose(found.top_logprobs[0], np.sort(expected)[::-1], atol=1e-5)


@pytest.mark.parametrize(
    "columns",
    [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"typical_p": 0.5}, {"num_logprobs": 2}],
    ids=str,
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_said_of_its_row_alone(columns: dict[str, float], value: float) -> None:
    logits = np.random.default_rng(1).normal(size=(3, VOCAB)).astype(np.float32)
    expected = sample(logits, rows(3, **columns))
    logits[1, 7] = value
    found = sample(logits, rows(3, **columns))
    assert found.tokens.tolist() == [expected.tokens[0], NOT_FINITE, expected.tokens[2]]
    assert np.isnan(found.logprobs[1])
    scored = sample(logits, rows(3, targets=np.array([1, 2, 3]), num_logprobs=0))
    assert scored.tokens.tolist() == [1, NOT_FINITE, 3]


def test_a_mask_that_allows_nothing_is_said_of_its_row_alone() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    changes = {1: Change(allowed=[]), 2: Change(allowed=[4], biases={4: -np.inf})}
    found = sample(logits, changed(rows(3, temperature=0.0), changes, VOCAB))
    assert found.tokens.tolist() == [0, NOTHING_ALLOWED, NOTHING_ALLOWED]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = np.array([[0.0, 2.0, 2.0, 1.0]], np.float32)
    assert sample(logits, rows(1, temperature=0.0)).tokens.tolist() == [1]


def test_top_k_keeps_exactly_k_among_equals() -> None:
    drawn = sample(np.zeros((500, 10), np.float32), rows(500, top_k=3)).tokens
    assert set(drawn.tolist()) == {0, 1, 2}


@examples(30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_a_row_does_not_depend_on_its_neighbours(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, VOCAB)).astype(np.float32) * 3
    columns = {"seeds": rng.integers(0, 2**63, count), "positions": rng.integers(0, 5000, count), "num_logprobs": 3}
    together = sample(logits, rows(count, top_p=0.9, **columns))
    for i in range(count):
        own = {name: value if np.isscalar(value) else np.asarray(value)[i : i + 1] for name, value in columns.items()}
        alone = sample(logits[i : i + 1], rows(1, top_p=0.9, **own))
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]
        assert np.array_equal(alone.top_tokens[0], together.top_tokens[i])


@pytest.mark.parametrize("top_p", [1e-50, 1e-30])
def test_the_most_probable_token_is_always_in_the_nucleus(top_p: float) -> None:
    logits = np.random.default_rng(2).normal(size=(5, VOCAB)).astype(np.float32)
    assert sample(logits, rows(5, top_p=top_p)).tokens.tolist() == logits.argmax(axis=1).tolist()


def test_logprobs_are_those_of_the_raw_logits() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, VOCAB)).astype(np.float32) * 5
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy()
    wanted = rows(3, targets=np.array([-1, 4, -1]), num_logprobs=np.array([5, 0, -1]), temperature=0.5, top_k=2)
    found = sample(logits, wanted)
    assert found.tokens[1] == 4
    assert np.allclose(found.logprobs[:2], expected[[0, 1], found.tokens[:2]], atol=1e-5)
    assert np.isnan(found.logprobs[2])
    assert found.top_tokens[0].tolist() == np.argsort(-expected[0])[:5].tolist()
    assert np.allclose(found.top_logprobs[0], np.sort(expected[0])[::-1][:5], atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = np.random.default_rng(2).normal(size=(50, VOCAB)).astype(np.float32)
    drawn = sample(logits, rows(50, temperature=temperature)).tokens
    assert drawn.tolist() == logits.argmax(axis=1).tolist()
