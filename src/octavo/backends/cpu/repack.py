"""Weights in the layout of the native kernels: tiles of eight output features, side by side (see native/kernels.h).

Every block format of a checkpoint becomes one of two kinds without loss: 4-bit integers (Q4_0, Q4_1, Q4_K) or 8-bit
ones (Q5_0, Q5_1, Q5_K, Q6_K, Q8_0), with float32 scales and minima per group of 32 or 16 inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.backends.protocol import Float32
from octavo.weights.formats import Format, Integers, take_apart
from octavo.weights.tensor import Tensor

TILE = 8
BLOCK = 32

U4, S8, F32, F16, BF16 = range(5)
"""Kinds of native/kernels.h."""

_FLOAT_KINDS = {Format.F32: F32, Format.F16: F16, Format.BF16: BF16}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix [out, in] for the native kernels.

    Attributes:
        kind: U4, S8, F32, F16 or BF16. group: inputs that share a scale.
        out, in_: with padding. width: inputs without it.
        data: uint8, contiguous. scales, minima: Float32[tiles, blocks, groups, TILE] or None.
    """

    kind: int
    group: int
    out: int
    in_: int
    width: int
    data: NDArray[np.uint8]
    scales: Float32 | None = None
    minima: Float32 | None = None

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        return sum(array.nbytes for array in (self.data, self.scales, self.minima) if array is not None)


def pack(tensors: Sequence[Tensor]) -> PackedWeight:
    """Stack weights [out, in] of one input, and repack them.

    Weights of different formats are brought to a common one: integers when all are quantised, float32 otherwise.
    """
    formats = {tensor.format for tensor in tensors}
    if all(form.is_quantised for form in formats):
        return _pack_integers([take_apart(tensor.format, tensor.data) for tensor in tensors])
    if len(formats) == 1:
        return _pack_floats(_FLOAT_KINDS[formats.pop()], np.concatenate([tensor.data for tensor in tensors]))
    return _pack_floats(F32, np.concatenate([tensor.to_float32() for tensor in tensors]))


def _pack_floats(kind: int, rows: NDArray[Any]) -> PackedWeight:
    width = rows.shape[1]
    padded = _pad(rows, TILE, 0)
    data = _tiles(padded, width)
    return PackedWeight(kind, 1, len(padded), width, width, data.reshape(-1).view(np.uint8))


def _pack_integers(parts: Sequence[Integers]) -> PackedWeight:
    width = parts[0].integers.shape[1]
    group = min(part.group for part in parts)
    groups = BLOCK // group
    four_bit = group == BLOCK and all(part.is_four_bit for part in parts)
    integers = np.concatenate([part.integers if four_bit else _signed(part) for part in parts])
    scales = np.concatenate([np.repeat(part.scales, part.group // group, axis=1) for part in parts])
    # The zero of a 4-bit format becomes a minimum; 8 bits have room for a sign.
    minima = [np.repeat(_minima(part, four_bit), part.group // group, axis=1) for part in parts]
    integers = _pad(_pad(integers, TILE, 0), BLOCK, 1)
    out, in_ = integers.shape
    blocks = in_ // BLOCK
    if four_bit:
        # [tile, lane, block, i, half, j] -> [tile, block, i, lane, j], the two halves in one byte
        halves = integers.reshape(-1, TILE, blocks, 4, 2, 4)
        integers = halves[:, :, :, :, 0] | (halves[:, :, :, :, 1] << 4)
    else:
        integers = integers.reshape(-1, TILE, blocks, 8, 4)
    data = np.ascontiguousarray(integers.transpose(0, 2, 3, 1, 4)).reshape(-1).view(np.uint8)

    def tiled(values: Float32) -> Float32:
        return _tiles(_pad(_pad(values, TILE, 0), groups, 1), blocks * groups)

    has_minima = any(part.own_minima is not None or (four_bit and part.zero) for part in parts)
    packed_minima = tiled(np.concatenate(minima)) if has_minima else None
    return PackedWeight(U4 if four_bit else S8, group, out, in_, width, data, tiled(scales), packed_minima)


def _signed(part: Integers) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = part.integers.view(np.int8) - np.int8(part.zero)
    return signed


def _minima(part: Integers, four_bit: bool) -> Float32:
    own = np.zeros_like(part.scales) if part.own_minima is None else part.own_minima
    return own - part.zero * part.scales if four_bit and part.zero else own


def _tiles(rows: NDArray[Any], width: int) -> NDArray[Any]:
    """[out, width] -> [tiles, width, TILE]."""
    return np.ascontiguousarray(rows.reshape(-1, TILE, width).transpose(0, 2, 1))


def _pad(array: NDArray[Any], multiple: int, axis: int) -> NDArray[Any]:
    """Zeros after the end of an axis, up to a multiple."""
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
