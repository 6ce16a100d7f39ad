"""The reference executor: a graph run op by op in numpy, float32, on a few threads.

It is plain so that it can be right: every other backend is held against it. It is deterministic bit for bit: a token's
logits depend on the tokens before it and on the weights, never on the batch (see `kernels` and `attention`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from octavo.backends.common.cores import physical_cores
from octavo.backends.common.rotation import Rotations
from octavo.backends.protocol import Batch, FinishedStep, Float32, Int64
from octavo.backends.reference import kernels
from octavo.backends.reference.attention import KVCache, QueryGroup, attend, group_queries
from octavo.backends.reference.kernels import padded_rows
from octavo.backends.reference.loading import load_weights
from octavo.backends.reference.sampling import sample
from octavo.backends.reference.workers import Workers
from octavo.graph.ops import (
    Activation,
    Add,
    Attention,
    Embedding,
    Graph,
    LayerNorm,
    Linear,
    Multiply,
    Op,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
)
from octavo.graph.passes import merge_sibling_linears
from octavo.weights.tensor import Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """A step's inputs, padded to whole blocks of rows.

    Attributes:
        batch: as submitted, not padded.
        tokens, positions: Int64[rows], 0 in the padding.
        logit_rows: Int64[padded], each row whose logits are wanted, once.
        groups: for every window how the tokens attend.
    """

    batch: Batch
    tokens: Int64
    positions: Int64
    logit_rows: Int64
    groups: dict[int | None, list[QueryGroup]]


class ReferenceExecutor:
    """One model with its KV pages; satisfies `octavo.backends.protocol.Executor`.

    Args:
        graph: the model.
        tensors: its weights by name.
        vocab_size: width of the logits.
        num_pages, page_size: the KV cache. Its memory is taken as pages are first written.
        progress: called with (elements loaded, elements in all) while weights load.
        threads: that compute; None is one for each core. The results do not depend on it.

    Raises:
        CheckpointError: weights are missing or have other shapes.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        *,
        vocab_size: int,
        num_pages: int,
        page_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
        threads: int | None = None,
    ) -> None:
        if graph.output.width != vocab_size:
            raise ValueError(f"the graph makes {graph.output.width} logits, the vocabulary has {vocab_size} tokens")
        self.vocab_size = vocab_size
        self.num_pages = num_pages
        self.page_size = page_size
        self._graph = merge_sibling_linears(graph)
        self._weights = load_weights(self._graph, tensors, progress)
        self._caches = [KVCache(op, num_pages, page_size) for op in graph.attention_layers()]
        self._windows = {op.window for op in graph.attention_layers()}
        self._rotations = Rotations()
        self._workers = Workers(threads or physical_cores())
        self._last_uses = _last_uses(self._graph)

    def submit(self, batch: Batch, masks_written: Callable[[], object] | None = None) -> FinishedStep:
        """Compute a step. Nothing is left to wait for."""
        for cache in self._caches:
            cache.copy_pages(batch.copies)
        wanted, row_of = np.unique(batch.logits.rows, return_inverse=True)
        logits = self._logits(self._prepare(batch, wanted.astype(np.int64)))
        if masks_written is not None:
            masks_written()
        return FinishedStep(sample(logits[row_of], batch.logits))

    def _prepare(self, batch: Batch, wanted: Int64) -> _Step:
        return _Step(
            batch=batch,
            tokens=_padded(batch.tokens.astype(np.int64)),
            positions=_padded(batch.positions.astype(np.int64)),
            logit_rows=_padded(wanted),
            groups={window: group_queries(batch, self.page_size, window) for window in self._windows},
        )

    def _logits(self, step: _Step) -> Float32:
        """Run the graph: Float32[rows in step.logit_rows, vocab_size]."""
        values: dict[int, Float32] = {}
        # exp(-x) of a very negative x is infinite, and silu then 0, which is right.
        with np.errstate(over="ignore"):
            for index, node in enumerate(self._graph.nodes):
                inputs = [values[source] for source in node.inputs]
                values[index] = self._run(node.op, inputs, self._weights[index], step)
                for unused in self._last_uses[index]:
                    del values[unused]
        return values[len(self._graph.nodes) - 1]

    def _run(self, op: Op, inputs: list[Float32], weights: tuple[Float32, ...], step: _Step) -> Float32:
        match op:
            case Linear():
                return kernels.linear(self._workers, inputs[0], *weights)
            case Slice(start, stop):
                return np.ascontiguousarray(inputs[0][:, start:stop])
            case Rope():
                return kernels.rope(inputs[0], *self._rotations.at(op, step.positions))
            case Attention():
                return self._attend(op, inputs, step)
            case RMSNorm():
                return kernels.rms_norm(op, inputs[0], *weights)
            case LayerNorm():
                return kernels.layer_norm(op, inputs[0], *weights)
            case Activation():
                return kernels.activation(op, inputs[0])
            case Add():
                return inputs[0] + inputs[1]
            case Multiply():
                return inputs[0] * inputs[1]
            case Scale(factor):
                return inputs[0] * np.float32(factor)
            case Embedding(index=index):
                return weights[0][step.tokens if index == "token" else step.positions]
            case SelectRows():
                return inputs[0][step.logit_rows]
            case _:
                raise TypeError(f"no kernel for {type(op).__name__}")

    def _attend(self, op: Attention, inputs: list[Float32], step: _Step) -> Float32:
        """Write keys and values of all tokens to their slots, then attend to the pages alone."""
        queries, keys, values = inputs
        cache, count = self._caches[op.layer], len(step.batch.tokens)
        cache.write(step.batch.slots, keys[:count], values[:count])
        return attend(self._workers, op, queries, cache, step.groups[op.window])


def _padded(indices: Int64) -> Int64:
    """`indices`, followed by zeros up to a whole number of blocks."""
    return np.pad(indices, (0, padded_rows(len(indices)) - len(indices)))


def _last_uses(graph: Graph) -> list[list[int]]:
    """For every node the values that nothing needs after it."""
    last = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
    uses: list[list[int]] = [[] for _ in graph.nodes]
    for source, index in last.items():
        uses[index].append(source)
    return uses
