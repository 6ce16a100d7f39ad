"""Sines and cosines for rotary embeddings."""

import numpy as np

from octavo.backends.protocol import Float32, Int64
from octavo.graph.ops import Rope

_CHUNK = 1024
"""Positions computed at a time. A chunk is always the same computation, whoever first needs it."""


class Rotations:
    """Tables of cosine and sine, one for each distinct rotary embedding, that grow with the positions asked for."""

    def __init__(self) -> None:
        self._tables: dict[Rope, Float32] = {}

    def at(self, op: Rope, positions: Int64) -> tuple[Float32, Float32]:
        """Cosine and sine, each Float32[T, head_dim / 2], for positions Int64[T]."""
        table = self._tables.get(op, np.empty((0, 2, op.head_dim // 2), np.float32))
        last = int(positions.max(initial=0))
        if len(table) <= last:
            chunks = [_chunk(op, start) for start in range(len(table), last + 1, _CHUNK)]
            table = self._tables[op] = np.concatenate([table, *chunks])
        rows = table[positions]
        return rows[:, 0], rows[:, 1]


def _chunk(op: Rope, start: int) -> Float32:
    """Positions from `start`: [_CHUNK, 2, head_dim / 2]. Angles are float32, as in training; they are exact no more at
    thousands of radians, and models have learnt that."""
    positions = np.arange(start, start + _CHUNK, dtype=np.float32)
    angles = (positions[:, None] * np.array(op.frequencies, np.float32)).astype(np.float64)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * op.magnitude).astype(np.float32)
