"""What the reference backend promises beside right numbers: pages copied, rows repeated, weights shared."""

from dataclasses import replace

import numpy as np
import pytest

from octavo.backends.common.rotation import Rotations
from octavo.backends.protocol import SAMPLE, Batch, LogitRows
from octavo.backends.reference import executor as executor_module
from octavo.backends.reference.executor import ReferenceExecutor
from octavo.backends.reference.loading import load_weights
from octavo.graph.ops import Graph, Rope
from octavo.models import build
from tests.backends.batches import Runner
from tests.models import oracle

TOKENS = np.random.default_rng(6).integers(0, 83, 30).tolist()


def executor_for(name: str, *, page_size: int = 4) -> ReferenceExecutor:
    graph, tensors, vocab_size = oracle.parts(name)
    return ReferenceExecutor(graph, tensors, vocab_size=vocab_size, num_pages=32, page_size=page_size, threads=1)


def greedy(rows: list[int]) -> LogitRows:
    count = len(rows)
    return LogitRows(
        rows=np.array(rows, np.int32),
        targets=np.full(count, SAMPLE, np.int32),
        positions=np.zeros(count, np.int64),
        seeds=np.zeros(count, np.uint64),
        temperature=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        typical_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        num_logprobs=np.zeros(count, np.int32),
    )


def batch(tokens: list[int], pages: list[int], start: int, logits: LogitRows, copies: list[list[int]]) -> Batch:
    """The next tokens of one sequence, on pages of 4."""
    positions = np.arange(start, start + len(tokens))
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=positions.astype(np.int32),
        slots=np.array([pages[p // 4] * 4 + p % 4 for p in positions], np.int64),
        query_starts=np.array([0, len(tokens)], np.int32),
        context_lengths=np.array([start + len(tokens)], np.int32),
        page_table=np.array([pages], np.int32),
        table_rows=np.zeros(1, np.int32),
        copies=np.array(copies, np.int32).reshape(-1, 2),
        logits=logits,
    )


def test_pages_are_copied_before_anything_is_written() -> None:
    executor = executor_for("llama")
    whole = executor.submit(batch(TOKENS[:11], [0, 1, 2], 0, greedy([10]), [])).result()
    executor.submit(batch(TOKENS[:10], [3, 4, 5], 0, greedy([9]), []))
    # A fork of the second sequence: it writes into the copy of page 5 in the step that copies it.
    forked = executor.submit(batch(TOKENS[10:11], [3, 4, 6], 10, greedy([0]), [[5, 6]])).result()
    assert forked.tokens == whole.tokens
    assert forked.logprobs == whole.logprobs


def test_a_row_may_be_wanted_several_times_in_any_order() -> None:
    executor = executor_for("qwen2")
    rows = [7, 2, 7, 7, 0]
    result = executor.submit(batch(TOKENS[:8], [4, 9], 0, greedy(rows), [])).result()
    single = [executor.submit(batch(TOKENS[:8], [4, 9], 0, greedy([row]), [])).result().logprobs.item() for row in rows]
    assert result.logprobs.tolist() == single


@pytest.mark.parametrize("name", ["llama-biased-tied", "qwen2", "gemma3", "gpt2"])
def test_merging_linears_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = Runner(executor_for(name)).run(TOKENS)
    monkeypatch.setattr(executor_module, "merge_sibling_linears", _unchanged)
    apart = Runner(executor_for(name)).run(TOKENS)
    np.testing.assert_allclose(merged, apart, atol=1e-5 * np.abs(apart).max())


def _unchanged(graph: Graph) -> Graph:
    return graph


def test_a_tied_embedding_is_one_array_and_progress_reaches_the_end() -> None:
    model = oracle.make("llama-biased-tied")
    graph = build(model.config.to_dict()).graph
    seen: list[tuple[int, int]] = []
    arrays = load_weights(graph, oracle.tensors(model), lambda done, total: seen.append((done, total)))
    assert arrays[0][0] is arrays[-1][0]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(parameter.numel() for parameter in model.parameters())


def test_rotations_do_not_depend_on_the_order_in_which_they_were_asked_for() -> None:
    rope = Rope((1.0, 0.3, 0.01), 1.5)
    early, late = Rotations(), Rotations()
    positions = np.array([5000, 3, 1024])
    late.at(rope, np.array([1023, 0]))
    for first, second in zip(early.at(rope, positions), late.at(rope, positions), strict=True):
        assert np.array_equal(first, second)
    cosine, sine = early.at(rope, positions)
    np.testing.assert_allclose(cosine, 1.5 * np.cos(positions[:, None] * np.array(rope.frequencies)), atol=1e-3)
    np.testing.assert_allclose(cosine**2 + sine**2, np.full((3, 3), 1.5**2), rtol=1e-6)


def test_the_vocabulary_must_be_the_graphs() -> None:
    graph, tensors, _ = oracle.parts("llama")
    with pytest.raises(ValueError, match=r"83 logits.*84 tokens"):
        ReferenceExecutor(graph, tensors, vocab_size=84, num_pages=1)


def test_steps_do_not_change_what_was_submitted() -> None:
    executor = executor_for("llama")
    step = batch(TOKENS[:8], [4, 9], 0, greedy([7]), [])
    before = replace(step, page_table=step.page_table.copy(), tokens=step.tokens.copy())
    executor.submit(step)
    assert np.array_equal(step.page_table, before.page_table)
    assert np.array_equal(step.tokens, before.tokens)
