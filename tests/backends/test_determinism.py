"""A token's log-probabilities on the reference backend are the same bits, whatever surrounds it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backends.reference import kernels
from octavo.backends.reference.executor import ReferenceExecutor
from octavo.backends.reference.workers import Workers
from tests.backends.batches import Runner
from tests.models import oracle
from tests.properties import examples

WORKERS = Workers(2)
FAMILIES = ["llama", "llama-heads-of-their-own", "mistral-window", "gemma3", "gpt2"]
TOKENS = np.random.default_rng(5).integers(0, 83, 70).tolist()


def executor_for(
    name: str, *, page_size: int = 16, num_pages: int = 128, threads: int | None = None
) -> ReferenceExecutor:
    graph, tensors, vocab_size = oracle.parts(name)
    more = {"num_pages": num_pages, "page_size": page_size, "threads": threads}
    return ReferenceExecutor(graph, tensors, vocab_size=vocab_size, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(family: str) -> np.ndarray:
    return Runner(executor_for(family)).run(TOKENS)


@pytest.mark.parametrize("chunks", [[1], [7], [16], [3, 33, 1, 20]], ids=str)
def test_chunking(family: str, alone: np.ndarray, chunks: list[int]) -> None:
    assert np.array_equal(Runner(executor_for(family)).run(TOKENS, chunks), alone)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(family: str, alone: np.ndarray, threads: int) -> None:
    assert np.array_equal(Runner(executor_for(family, threads=threads)).run(TOKENS, [40, 1]), alone)


@pytest.mark.parametrize("page_size", [1, 4, 32])
def test_page_size(family: str, alone: np.ndarray, page_size: int) -> None:
    executor = executor_for(family, page_size=page_size)
    assert np.array_equal(Runner(executor).run(TOKENS, [9, 50, 1]), alone)


def test_page_placement_and_what_other_pages_hold(family: str, alone: np.ndarray) -> None:
    executor = executor_for(family, page_size=4)
    for cache in executor._caches:
        cache.keys[:] = np.nan
        cache.values[:] = np.nan
    pages = np.random.default_rng(0).permutation(executor.num_pages).tolist()
    assert np.array_equal(Runner(executor, pages).run(TOKENS, [30, 1]), alone)


def test_in_a_batch_of_32(family: str, alone: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    runner = Runner(executor_for(family, num_pages=256))
    it = runner.sequence(TOKENS)
    others = [runner.sequence(rng.integers(0, 83, 40).tolist()) for _ in range(31)]
    found = []
    while it.computed < len(TOKENS):
        work = [(other, int(rng.integers(1, 5))) for other in others if other.computed < 36]
        work.insert(int(rng.integers(0, len(work) + 1)), (it, min(int(rng.integers(1, 12)), len(TOKENS) - it.computed)))
        place = next(i for i, (sequence, _) in enumerate(work) if sequence is it)
        found.append(runner.step(work)[place])
    assert np.array_equal(np.concatenate(found), alone)


@examples(40)
@given(st.integers(1, 70), st.integers(1, 130), st.integers(0, 2**32 - 1))
def test_a_row_of_a_product_does_not_depend_on_its_place(width: int, out: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(out, width)).astype(np.float32)
    row = rng.normal(size=width).astype(np.float32)
    results = set()
    for place in range(kernels.BLOCK_ROWS * 2):
        x = rng.normal(size=(kernels.BLOCK_ROWS * 2, width)).astype(np.float32)
        x[place] = row
        results.add(kernels.linear(WORKERS, x, weight)[place].tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(("out", "width"), [(960, 576), (576, 1536), (3072, 576), (4096, 576)])
def test_nor_in_the_products_of_the_default_model(out: int, width: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(out, width)).astype(np.float32)
    x = rng.normal(size=(kernels.BLOCK_ROWS, width)).astype(np.float32)
    turned = [
        np.roll(kernels.linear(WORKERS, np.roll(x, place, axis=0), weight), -place, axis=0) for place in range(16)
    ]
    assert all(np.array_equal(result, turned[0]) for result in turned)


@pytest.mark.parametrize("rows", [16, 48])
def test_products_are_contiguous(rows: int) -> None:
    # Sums over the last axis round differently when it is not contiguous.
    y = kernels.linear(WORKERS, np.ones((rows, 5), np.float32), np.ones((7, 5), np.float32))
    assert y.flags.c_contiguous


def test_a_step_may_want_no_logits() -> None:
    executor = executor_for("llama")
    runner = Runner(executor)
    sequence = runner.sequence(TOKENS)
    runner.step([(sequence, 50)], logits=False)
    assert np.array_equal(runner.step([(sequence, 20)])[0], Runner(executor_for("llama")).run(TOKENS)[50:])
