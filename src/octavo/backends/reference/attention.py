"""Attention over paged keys and values.

A query at position p always meets the same product: with all positions from the start (or from the block in which its
window starts) to the end of p's block of `BLOCK_POSITIONS`, those it must not see being masked. So its result does not
depend on how the prompt was cut into chunks, on the sequence's later tokens, or on who else is in the batch. Where
the pages lie does not matter either: keys and values are gathered into contiguous arrays first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.backends.protocol import Batch, Bool, Float32, Int32, Int64
from octavo.backends.reference.workers import Workers
from octavo.graph.ops import Attention

BLOCK_POSITIONS = 16
"""Positions are padded to a multiple of this. It is no page size: pages of any size give the same results."""

HEAD_ROWS = 4
"""The query heads of a KV head are padded to a multiple of this many rows: one row would take another path through BLAS
(matrix times vector), and kernels for odd numbers of rows are slower."""

GATHERED_POSITIONS = 1024
"""Positions whose keys and values are gathered at a time, so that they are still in the cache when they are used."""


class KVCache:
    """One layer's keys and values: Float32[num_pages, page_size, kv heads, head size] each.

    Memory is zeroed by the operating system when a page is first touched, so that a large pool costs nothing up front.
    """

    def __init__(self, op: Attention, num_pages: int, page_size: int) -> None:
        shape = (num_pages, page_size, op.num_kv_heads, op.head_dim)
        self.keys: Float32 = np.zeros(shape, np.float32)
        self.values: Float32 = np.zeros(shape, np.float32)

    def copy_pages(self, copies: Int32) -> None:
        """Copy pages: Int32[C, 2], (source, destination)."""
        for pages in (self.keys, self.values):
            pages[copies[:, 1]] = pages[copies[:, 0]]

    def write(self, slots: Int64, keys: Float32, values: Float32) -> None:
        """Store the keys and values [T, kv heads * head size] of T tokens in their slots."""
        for pages, new in ((self.keys, keys), (self.values, values)):
            _by_slot(pages)[slots] = new.reshape(len(slots), *pages.shape[2:])

    def read(self, slots: Int64) -> tuple[Float32, Float32]:
        """Keys and values in `slots`, of any shape -> [*shape of slots, kv heads, head size]."""
        # Indexing with an array would do the same, eight times slower.
        return _by_slot(self.keys).take(slots, axis=0), _by_slot(self.values).take(slots, axis=0)


def _by_slot(pages: Float32) -> Float32:
    return pages.reshape(-1, *pages.shape[2:])


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """I runs of n tokens each, every run in one block of one sequence, that all meet as many positions, N.

    Attributes:
        tokens: Int64[I, n], rows of the batch.
        slots: Int64[I, N], where the keys and values of those positions are.
        hidden: Bool[I, n, 1, 1, N], which positions a token must not see.
    """

    tokens: Int64
    slots: Int64
    hidden: Bool


def group_queries(batch: Batch, page_size: int, window: int | None) -> list[QueryGroup]:
    """Divide a step's tokens into groups, for all layers with this window."""
    sequence = np.repeat(np.arange(len(batch.table_rows)), np.diff(batch.query_starts))
    positions = batch.positions.astype(np.int64)
    block = positions // BLOCK_POSITIONS
    starts_run = np.ones(len(positions), np.bool_)
    starts_run[1:] = (sequence[1:] != sequence[:-1]) | (block[1:] != block[:-1])
    first = np.flatnonzero(starts_run)
    count = np.diff(np.append(first, len(positions)))
    begin = np.zeros_like(first)
    if window is not None:
        begin = np.maximum(block[first] * BLOCK_POSITIONS - window + 1, 0) // BLOCK_POSITIONS * BLOCK_POSITIONS
    length = (block[first] + 1) * BLOCK_POSITIONS - begin

    groups = []
    for runs in _alike(count, length):
        tokens = first[runs, None] + np.arange(count[runs[0]])
        seen = begin[runs, None] + np.arange(length[runs[0]])
        owner = sequence[first[runs], None]
        # Past its end a sequence owns no slots, and foreign ones may hold NaN, which no mask removes (0 * NaN is NaN):
        # the last token stands in for what is not there, and weighs exactly nothing.
        present = np.minimum(seen, batch.context_lengths[owner] - 1)
        pages = batch.page_table[batch.table_rows[owner], present // page_size].astype(np.int64)
        query, key = positions[tokens][:, :, None], seen[:, None, :]
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        groups.append(QueryGroup(tokens, pages * page_size + present % page_size, hidden[:, :, None, None]))
    return groups


def _alike(count: NDArray[np.int64], length: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The indices of runs that agree in both, not too many at a time."""
    keys, member = np.unique(np.stack([count, length]), axis=1, return_inverse=True)
    for key in range(keys.shape[1]):
        runs = np.flatnonzero(member == key)
        step = max(1, GATHERED_POSITIONS // int(keys[1, key]))
        for start in range(0, len(runs), step):
            yield runs[start : start + step]


def attend(workers: Workers, op: Attention, queries: Float32, cache: KVCache, groups: Sequence[QueryGroup]) -> Float32:
    """See `Attention`: queries [rows, heads * head size] -> the same shape; rows in no group become 0."""
    rows, heads = len(queries), op.num_heads // op.num_kv_heads
    shape = (rows, op.num_kv_heads, -(-heads // HEAD_ROWS) * HEAD_ROWS, op.head_dim)
    tiles: Float32 = np.zeros(shape, np.float32)
    np.multiply(queries.reshape(rows, op.num_kv_heads, heads, op.head_dim), op.scale, out=tiles[:, :, :heads])
    result: Float32 = np.zeros(shape, np.float32)

    def attend_group(group: QueryGroup) -> None:
        keys, values = cache.read(group.slots)  # [I, N, kv heads, head size]
        scores = np.matmul(tiles[group.tokens], keys.transpose(0, 2, 3, 1)[:, None])  # [I, n, kv heads, heads, N]
        np.copyto(scores, -np.inf, where=group.hidden)
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        mixed = np.matmul(weights, values.transpose(0, 2, 1, 3)[:, None])
        mixed /= weights.sum(axis=-1, keepdims=True)
        result[group.tokens] = mixed

    workers.run(attend_group, groups)
    return result[:, :, :heads].reshape(rows, op.num_heads * op.head_dim)
