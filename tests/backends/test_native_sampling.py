"""The native sampler against the reference's: the same tokens but where a number hits a bound, the same bits always.

The model is an embedding alone, so that the logits of a step are rows of its table, bit for bit.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backends.protocol import NOT_FINITE, NOTHING_ALLOWED, SAMPLE, Batch, LogitRows, StepResult
from octavo.backends.reference.sampling import _distribution, _draw, adjust, sample, uniform
from octavo.graph.builder import GraphBuilder
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Change, changed, rows

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

ISAS = native.instruction_sets()
pytestmark = pytest.mark.usefixtures("unchecked_weights")

VOCABS = [1, 7, 8, 63, 64, 65, 97, 1000, 49152]


class Sampler:
    """Samples from given logits through a step of the native backend."""

    def __init__(self, logits: np.ndarray, *, isa: str = ISAS[0], threads: int = 1) -> None:
        self.count, vocab = logits.shape
        g = GraphBuilder()
        graph = g.finish(g.select_rows(g.embedding("table", self.count, vocab)))
        tensors = {"table.weight": Tensor("table.weight", logits.shape, Format.F32, logits)}
        self.executor = CpuExecutor(
            graph, tensors, vocab_size=vocab, num_pages=1, max_positions=1, threads=threads, isa=isa
        )

    def __call__(self, wanted: LogitRows, masks_written: Callable[[], object] | None = None) -> StepResult:
        batch = Batch(
            tokens=np.arange(self.count, dtype=np.int32),
            positions=np.zeros(self.count, np.int32),
            slots=np.zeros(self.count, np.int64),
            query_starts=np.array([0, self.count], np.int32),
            context_lengths=np.array([1], np.int32),
            page_table=np.zeros((1, 1), np.int32),
            table_rows=np.zeros(1, np.int32),
            copies=np.zeros((0, 2), np.int32),
            logits=wanted,
        )
        return self.executor.submit(batch, masks_written).result()


def near_ties(logits: np.ndarray, wanted: LogitRows, row: int) -> set[int]:
    """What the reference draws when the random number and the thresholds are moved by a billionth."""
    logits = adjust(logits, wanted, row)
    number = float(uniform(wanted.seeds[row : row + 1], wanted.positions[row : row + 1])[0])
    top_p, typical_p, min_p = (float(column[row]) for column in (wanted.top_p, wanted.typical_p, wanted.min_p))
    nudges = (-1e-9, 0.0, 1e-9)
    found = set()
    off = (0.0,)
    for by_number, by_top_p, by_typical_p, by_min_p in product(
        nudges, nudges if top_p < 1 else off, nudges if typical_p < 1 else off, nudges if min_p > 0 else off
    ):
        ids, weights = _distribution(
            logits,
            temperature=float(wanted.temperature[row]),
            top_k=int(wanted.top_k[row]),
            top_p=top_p * (1 + by_top_p),
            typical_p=typical_p * (1 + by_typical_p),
            min_p=min(min_p * (1 + by_min_p), 1.0),
        )
        found.add(_draw(ids, weights, min(max(number + by_number, 0.0), 1 - 2**-53)))
    return found


def assert_same(found: StepResult, expected: StepResult, logits: np.ndarray, wanted: LogitRows) -> None:
    same = found.tokens == expected.tokens
    for row in np.flatnonzero(~same):
        assert wanted.targets[row] == SAMPLE
        assert wanted.temperature[row] > 0
        assert found.tokens[row] in near_ties(logits[row], wanted, int(row))
    assert np.allclose(found.logprobs[same], expected.logprobs[same], atol=1e-5, equal_nan=True)
    assert np.array_equal(found.top_tokens, expected.top_tokens)
    assert np.allclose(found.top_logprobs, expected.top_logprobs, atol=1e-5)


def random_logits(kind: str, count: int, vocab: int, rng: np.random.Generator) -> np.ndarray:
    shape = (count, vocab)
    match kind:
        case "normal":
            logits = rng.normal(size=shape) * rng.choice([0.01, 1.0, 4.0, 30.0], (count, 1)) + rng.choice([0.0, 50.0])
        case "ties":
            logits = rng.integers(-3, 4, shape)
        case "equal":
            logits = np.full(shape, rng.normal())
        case _:
            logits = np.where(rng.random(shape) < 0.5, rng.normal(size=shape), -np.inf)
    return logits.astype(np.float32)


def random_change(vocab: int, free: int, rng: np.random.Generator) -> Change:
    """Any of the changes; token `free` may be drawn."""
    seen = rng.permutation(vocab)[: rng.integers(0, 30)].tolist() if rng.random() < 0.5 else []
    biases: dict[int, float] = {}
    if rng.random() < 0.7:
        biases = {int(token): float(rng.normal() * 3) for token in rng.permutation(vocab)[: rng.integers(0, 9)]}
    if rng.random() < 0.7:
        biases |= {int(token): -np.inf for token in rng.permutation(vocab)[: rng.integers(0, 5)] if token != free}
    return Change(
        seen={token: int(rng.integers(0, 4)) for token in seen},
        repetition=float(rng.choice([1.0, 1.3, 0.7])),
        frequency=float(rng.choice([0.0, 0.37])),
        presence=float(rng.choice([0.0, -1.1])),
        biases=biases,
        allowed={free, *rng.permutation(vocab)[: rng.integers(0, vocab + 1)].tolist()} if rng.random() < 0.4 else None,
    )


@given(
    kind=st.sampled_from(["normal", "ties", "equal", "infinite"]),
    vocab=st.sampled_from(VOCABS),
    count=st.integers(1, 6),
    more=st.integers(0, 6),
    isa=st.sampled_from(ISAS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_row_is_sampled_as_by_the_reference(
    kind: str, vocab: int, count: int, more: int, isa: str, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(kind, count, vocab, rng)
    free = int(rng.integers(vocab))
    logits[:, free] = np.maximum(logits[:, free], -3.0)
    which = np.concatenate([np.arange(count), rng.integers(0, count, more)])  # every row, and some of them again
    total = len(which)
    wanted = rows(
        total,
        rows=which,
        targets=np.where(rng.random(total) < 0.2, rng.integers(0, vocab, total), SAMPLE),
        positions=rng.integers(0, 2**40, total),
        seeds=rng.integers(0, 2**64, total, dtype=np.uint64),
        temperature=rng.choice([0.0, 1e-6, 0.3, 1.0, 1.0, 2.0, 100.0], total),
        top_k=rng.choice([0, 0, 1, 5, 50, 800, vocab - 1, vocab, vocab + 9], total),
        top_p=rng.choice([1.0, 1.0, 0.999, 0.9, 0.5, 1e-3, 0.0], total),
        typical_p=rng.choice([1.0, 1.0, 1.0, 0.999, 0.9, 0.5, 1e-3], total),
        min_p=rng.choice([0.0, 0.0, 1e-4, 0.05, 0.5, 1.0], total),
        num_logprobs=np.minimum(rng.choice([-1, -1, 0, 1, 5, 20, vocab], total), vocab),
    )
    changes = {row: random_change(vocab, free, rng) for row in range(total) if rng.random() < 0.3}
    if changes:
        wanted = changed(wanted, changes, vocab)
    found = Sampler(logits, isa=isa, threads=threads)(wanted)
    assert_same(found, sample(logits[which], wanted), logits[which], wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"top_k": 40},
        {"top_p": 0.95},
        {"typical_p": 0.6},
        {"min_p": 0.05},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"top_p": 0.9, "typical_p": 0.8},
    ],
    ids=str,
)
def test_a_thousand_draws_are_those_of_the_reference(isa: str, columns: dict[str, float]) -> None:
    rng = np.random.default_rng(4)
    logits = (rng.normal(size=(1, 5003)) * 3).astype(np.float32)
    seeds = rng.integers(0, 2**64, 1000, dtype=np.uint64)
    wanted = rows(1000, rows=0, seeds=seeds, temperature=0.8, **columns)
    found = Sampler(logits, isa=isa)(wanted)
    again = np.repeat(logits, 1000, axis=0)
    assert_same(found, sample(again, wanted), again, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_random_numbers_are_those_of_the_reference(isa: str) -> None:
    # Equal weights: the token is the number's first 16 bits.
    rng = np.random.default_rng(6)
    seeds, positions = rng.integers(0, 2**64, 500, dtype=np.uint64), rng.integers(0, 2**63, 500)
    found = Sampler(np.zeros((1, 2**16), np.float32), isa=isa)(rows(500, rows=0, seeds=seeds, positions=positions))
    assert found.tokens.tolist() == (uniform(seeds, positions) * 2**16).astype(int).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "columns", [{}, {"top_k": 4}, {"top_p": 0.9999}, {"typical_p": 0.9999}, {"min_p": 0.01}], ids=str
)
def test_frequencies_follow_the_probabilities(isa: str, columns: dict[str, float]) -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.full((1, 97), -np.inf, np.float32)
    logits[0, [3, 40, 64, 96]] = np.log(probabilities)
    count = 20_000
    drawn = Sampler(logits, isa=isa)(rows(count, rows=0, seeds=3, **columns)).tokens
    observed = np.bincount(drawn, minlength=97)
    assert observed.sum() == observed[[3, 40, 64, 96]].sum()
    expected = probabilities * count
    assert ((observed[[3, 40, 64, 96]] - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_batch_or_threads(isa: str) -> None:
    rng = np.random.default_rng(8)
    count, vocab = 24, 3001
    logits = rng.normal(size=(count, vocab)).astype(np.float32) * 3
    columns = {
        "positions": rng.integers(0, 5000, count),
        "seeds": rng.integers(0, 2**63, count),
        "temperature": rng.choice([0.0, 0.7, 1.0], count),
        "top_k": rng.choice([0, 50], count),
        "top_p": rng.choice([1.0, 0.9], count),
        "typical_p": rng.choice([1.0, 0.9], count),
        "min_p": rng.choice([0.0, 0.02], count),
    }
    changes = {row: random_change(vocab, 0, rng) for row in range(0, count, 3)}
    wanted = changed(rows(count, num_logprobs=3, **columns), changes, vocab)
    together = [Sampler(logits, isa=isa, threads=threads)(wanted) for threads in (1, 2, 3)]
    for row in range(count):
        own = {name: values[row : row + 1] for name, values in columns.items()}
        mine = rows(1, num_logprobs=3, **own)
        if row in changes:
            mine = changed(mine, {0: changes[row]}, vocab)
        alone = Sampler(logits[row : row + 1], isa=isa)(mine)
        for result in together:
            assert result.tokens[row] == alone.tokens[0]
            assert result.logprobs[row] == alone.logprobs[0]
            assert np.array_equal(result.top_tokens[row], alone.top_tokens[0])
            assert np.array_equal(result.top_logprobs[row], alone.top_logprobs[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("place", [0, 70, 99])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_of_its_row_alone(isa: str, place: int, value: float) -> None:
    logits = np.random.default_rng(1).normal(size=(3, 100)).astype(np.float32)
    expected = Sampler(logits, isa=isa)(rows(3, temperature=0.0)).tokens
    logits[1, place] = value
    if value == -np.inf:
        logits[1, :] = -np.inf
    sampler = Sampler(logits, isa=isa)
    ways = [
        {"temperature": 0.0},
        {},
        {"top_k": 1},
        {"top_p": 0.9},
        {"typical_p": 0.5},
        {"min_p": 0.1},
        {"top_k": 1, "top_p": 0.5},
    ]
    for columns in ways:
        for more in ({}, {"num_logprobs": 0}, {"num_logprobs": 3}):
            wanted = rows(3, **columns, **more)
            found = sampler(wanted)
            assert_same(found, sample(logits, wanted), logits, wanted)
            assert (found.tokens == NOT_FINITE).tolist() == [False, True, False]
            if columns == {"temperature": 0.0}:
                assert found.tokens[[0, 2]].tolist() == expected[[0, 2]].tolist()
    banned = changed(rows(3), {1: Change(biases={place: -np.inf})}, 100)
    elsewhere = changed(rows(3), {1: Change(allowed=[place - 1, place + 1])}, 100) if place == 70 else banned
    for wanted in (banned, elsewhere, rows(3, targets=np.array([3, 3, 3]), num_logprobs=1)):
        found = sampler(wanted)
        assert (found.tokens == NOT_FINITE).tolist() == [False, True, False]
        assert_same(found, sample(logits, wanted), logits, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "columns", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}, {"typical_p": 0.9}, {"min_p": 0.1}], ids=str
)
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000])
def test_what_a_mask_forbids_is_never_drawn(isa: str, columns: dict[str, float], vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = (rng.normal(size=(1, vocab)) * 5).astype(np.float32)
    for size in {1, 2, vocab // 2, vocab} - {0}:
        # The least probable ones: whatever the sampler looks at first is forbidden.
        allowed = np.argsort(logits[0])[:size].tolist()
        wanted = rows(40, rows=0, seeds=rng.integers(0, 2**63, 40), num_logprobs=0, **columns)
        wanted = changed(wanted, dict.fromkeys(range(40), Change(allowed=allowed)), vocab)
        found = Sampler(logits, isa=isa, threads=2)(wanted)
        assert set(found.tokens.tolist()) <= set(allowed)
        again = np.repeat(logits, 40, axis=0)
        assert_same(found, sample(again, wanted), again, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_a_mask_that_allows_nothing_is_said_of_its_row_alone(isa: str) -> None:
    logits = np.random.default_rng(1).normal(size=(4, 70)).astype(np.float32)
    changes = {1: Change(allowed=[]), 2: Change(allowed=[4], biases={4: -np.inf}), 3: Change(allowed=[69])}
    for columns in ({}, {"temperature": 0.0}, {"top_k": 3, "num_logprobs": 2}):
        wanted = changed(rows(4, **columns), changes, 70)
        found = Sampler(logits, isa=isa)(wanted)
        assert found.tokens[1:].tolist() == [NOTHING_ALLOWED, NOTHING_ALLOWED, 69]
        assert_same(found, sample(logits, wanted), logits, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masks_that_arrive_late_give_the_same_bits(isa: str, threads: int) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(24, 3001)).astype(np.float32) * 3
    changes = {row: Change(allowed=rng.permutation(3001)[:200].tolist()) for row in range(0, 24, 2)}
    wanted = changed(rows(24, seeds=rng.integers(0, 2**63, 24), num_logprobs=3, top_p=0.9), changes, 3001)
    sampler = Sampler(logits, isa=isa, threads=threads)
    expected = sampler(wanted)
    assert wanted.masks is not None
    late = replace(wanted, masks=np.zeros_like(wanted.masks))
    asked = threading.Event()

    def write() -> None:
        assert asked.wait(30)  # sampling has come to where it needs them
        assert late.masks is not None
        assert wanted.masks is not None
        late.masks[:] = wanted.masks

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        found = sampler(late, lambda: (asked.set(), written.result()))
    for name in ("tokens", "logprobs", "top_tokens", "top_logprobs"):
        assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=name.endswith("logprobs"))


@pytest.mark.parametrize("threads", [1, 3])
def test_masks_that_never_come_are_the_steps_error(threads: int) -> None:
    sampler = Sampler(np.zeros((4, 9), np.float32), threads=threads)

    def fail() -> None:
        raise ArithmeticError("the grammar broke")

    with pytest.raises(ArithmeticError, match="the grammar broke"):
        sampler(rows(4), fail)
    assert sampler(rows(4, temperature=0.0)).tokens.tolist() == [0, 0, 0, 0]


def _bad(**changes: object) -> LogitRows:
    """A row with a ban, a penalty and a mask, and then something wrong with these arrays."""
    wanted = changed(rows(1), {0: Change(seen={3: 1}, biases={4: 1.0}, allowed=[5])}, 9)
    for name, value in changes.items():
        group, _, column = name.partition("_of_")
        part = getattr(wanted, column) if column in ("penalties", "biases") else None
        wanted = replace(wanted, **({column: replace(part, **{group: value})} if part is not None else {name: value}))
    return wanted


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (rows(1, targets=9), IndexError),
        (rows(1, targets=-2), IndexError),
        (rows(1, num_logprobs=10), ValueError),
        (_bad(ids_of_biases=np.array([9], np.int32)), IndexError),
        (_bad(ids_of_biases=np.array([-1], np.int32)), IndexError),
        (_bad(ids_of_penalties=np.array([9], np.int32)), IndexError),
        (_bad(starts_of_penalties=np.array([0, 2], np.int32)), ValueError),
        (_bad(starts_of_biases=np.array([1, 0], np.int32)), ValueError),
        (_bad(counts_of_penalties=np.zeros(0, np.int32)), ValueError),
        (_bad(values_of_biases=np.zeros(1, np.float64)), ValueError),
        (_bad(mask_of_row=np.array([1], np.int32)), ValueError),
        (_bad(mask_of_row=np.array([-2], np.int32)), ValueError),
        (_bad(masks=np.zeros((1, 2), np.uint32)), ValueError),
        (rows(1, rows=1), ValueError),
        (rows(1, rows=-1), ValueError),
    ],
    ids=range(15),
)
def test_arrays_that_do_not_fit_are_refused(wanted: LogitRows, error: type[Exception]) -> None:
    sampler = Sampler(np.zeros((1, 9), np.float32))
    with pytest.raises(error):
        sampler(wanted)
    assert sampler(rows(1, temperature=0.0)).tokens.tolist() == [0]


def test_rows_that_ask_for_nothing_get_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    found = Sampler(logits)(rows(3, num_logprobs=np.array([2, -1, 0])))
    assert np.isnan(found.logprobs).tolist() == [False, True, False]
    assert found.top_tokens[1:].tolist() == [[-1, -1], [-1, -1]]
    assert np.isneginf(found.top_logprobs[1:]).all()
