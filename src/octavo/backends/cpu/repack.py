"""Weights in the layout of the native kernels: tiles of output features, side by side (see native/kernels.h).

A tile has as many features as a vector of the instruction set has lanes.

Every block format of a checkpoint becomes one of two kinds without loss: 4-bit integers (Q4_0, Q4_1, Q4_K) or 8-bit
ones (Q5_0, Q5_1, Q5_K, Q6_K, Q8_0), with scales and minima per group of 32 or 16 inputs. These are kept as float16
where float16 holds all of them, else as float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.backends.cpu._native import BLOCK, WeightKind
from octavo.backends.cpu.memory import Slabs
from octavo.backends.protocol import Float32
from octavo.weights.formats import Format, Integers, take_apart
from octavo.weights.quantise import quantise
from octavo.weights.tensor import Tensor

_FLOAT_KINDS = {Format.F32: WeightKind.F32, Format.F16: WeightKind.F16, Format.BF16: WeightKind.BF16}

_INTEGER_KINDS = (WeightKind.U4, WeightKind.S8)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix [out, in] for the native kernels.

    Attributes:
        kind: of integers or floats. group: inputs that share a scale.
        half_scales: scales and minima are float16. minima: there are some.
        out, in_: with padding.
        data: uint8, contiguous.
    """

    kind: WeightKind
    group: int
    half_scales: bool
    minima: bool
    out: int
    in_: int
    data: NDArray[np.uint8]

    @property
    def is_quantised(self) -> bool:
        return self.kind in _INTEGER_KINDS


class Layout(NamedTuple):
    """How weights of one format are packed: the fields of `PackedWeight` that do not depend on shapes."""

    kind: WeightKind
    group: int
    half_scales: bool
    minima: bool

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a packed matrix [out, in], less what fills its last tile."""
        out, width = shape
        if self.kind not in _INTEGER_KINDS:
            return out * width * (4 if self.kind is WeightKind.F32 else 2)
        integers = BLOCK // (2 if self.kind is WeightKind.U4 else 1)
        scales = (2 if self.half_scales else 4) * (BLOCK // self.group + self.minima)
        return out * -(-width // BLOCK) * (integers + scales)


_LAYOUTS = {
    Format.Q4_0: Layout(WeightKind.U4, 32, True, True),
    Format.Q4_1: Layout(WeightKind.U4, 32, True, True),
    Format.Q4_K: Layout(WeightKind.U4, 32, False, True),
    Format.Q5_0: Layout(WeightKind.S8, 32, True, False),
    Format.Q5_1: Layout(WeightKind.S8, 32, True, True),
    Format.Q5_K: Layout(WeightKind.S8, 32, False, True),
    Format.Q6_K: Layout(WeightKind.S8, 16, False, False),
    Format.Q8_0: Layout(WeightKind.S8, 32, True, False),
}


def layout_of(form: Format, bits: int | None = None) -> Layout:
    """How a weight of this format is packed, quantised to `bits` if it is not quantised yet."""
    if form in _LAYOUTS:
        return _LAYOUTS[form]
    if bits is None:
        return Layout(_FLOAT_KINDS[form], 1, False, False)
    return _LAYOUTS[Format.Q4_1 if bits == 4 else Format.Q8_0]


def pack(tensors: Sequence[Tensor], tile: int, memory: Slabs, bits: int | None = None) -> PackedWeight:
    """Stack weights [out, in] of one input, and repack them.

    Weights of different formats are brought to a common one: integers when all are quantised, float32 otherwise.

    Args:
        tile: output features of a tile.
        memory: where the result goes.
        bits: 4 or 8 quantises weights that are not quantised yet.
    """
    formats = {tensor.format for tensor in tensors}
    if bits is not None or all(form.is_quantised for form in formats):
        return _pack_integers([_integers(tensor, bits) for tensor in tensors], tile, memory)
    if len(formats) == 1:
        return _pack_floats(
            _FLOAT_KINDS[formats.pop()], np.concatenate([tensor.data for tensor in tensors]), tile, memory
        )
    return _pack_floats(WeightKind.F32, np.concatenate([tensor.to_float32() for tensor in tensors]), tile, memory)


def _integers(tensor: Tensor, bits: int | None) -> Integers:
    if tensor.format.is_quantised:
        return take_apart(tensor.format, tensor.data)
    assert bits is not None
    return quantise(tensor.to_float32(), bits)


def _pack_floats(kind: WeightKind, rows: NDArray[Any], tile: int, memory: Slabs) -> PackedWeight:
    width = rows.shape[1]
    padded = _pad(rows, tile, 0)
    data = memory.zeros(padded.nbytes)
    data.view(padded.dtype).reshape(-1, width, tile)[:] = padded.reshape(-1, tile, width).transpose(0, 2, 1)
    return PackedWeight(kind, group=1, half_scales=False, minima=False, out=len(padded), in_=width, data=data)


def _pack_integers(parts: Sequence[Integers], tile: int, memory: Slabs) -> PackedWeight:
    group = min(part.group for part in parts)
    groups = BLOCK // group
    four_bit = group == BLOCK and all(part.is_four_bit for part in parts)
    integers = np.concatenate([part.integers if four_bit else _signed(part) for part in parts])
    integers = _pad(_pad(integers, tile, 0), BLOCK, 1)
    out, in_ = integers.shape
    blocks = in_ // BLOCK
    repeated = [np.repeat(part.scales, part.group // group, axis=1) for part in parts]
    scales = [_tiled(np.concatenate(repeated), groups, tile)]
    # The zero of a 4-bit format becomes a minimum; 8 bits have room for a sign.
    has_minima = four_bit or any(part.own_minima is not None for part in parts)
    if has_minima:
        scales.append(_tiled(np.concatenate([_minima(part, four_bit) for part in parts]), 1, tile))
    with np.errstate(over="ignore"):
        half = all(np.array_equal(values.astype(np.float16).astype(np.float32), values) for values in scales)
    integer_bytes = tile * BLOCK // 2 if four_bit else tile * BLOCK
    scale_bytes = tile * (2 if half else 4)
    records = memory.zeros(out // tile, blocks, integer_bytes + scale_bytes * (groups + has_minima))
    if four_bit:
        # input = 16 a + 8 half + 4 c + j of a block: the two halves in one byte
        split = integers.reshape(-1, tile, blocks, 2, 2, 2, 4)
        both = split[:, :, :, :, 0] | (split[:, :, :, :, 1] << np.uint8(4))  # [tile, lane, block, a, c, j]
        records[:, :, :integer_bytes] = both.transpose(0, 2, 3, 4, 1, 5).reshape(-1, blocks, integer_bytes)
    else:
        # input = 16 a + 8 half + 4 c + 2 second + odd of a block: pairs of one `odd` side by side, as `in_pairs` says
        split = integers.reshape(-1, tile, blocks, 2, 2, 2, 2, 2)  # [tile, lane, block, a, half, c, second, odd]
        pairs = split.transpose(0, 2, 3, 5, 7, 4, 1, 6)
        records[:, :, :integer_bytes] = pairs.reshape(-1, blocks, integer_bytes).view(np.uint8)
    end = integer_bytes
    for values in scales:
        stored = np.ascontiguousarray(values.astype(np.float16) if half else values).view(np.uint8)
        records[:, :, end : end + stored.shape[2]] = stored
        end += stored.shape[2]
    kind = WeightKind.U4 if four_bit else WeightKind.S8
    data = records.reshape(-1)
    return PackedWeight(kind, group=group, half_scales=half, minima=has_minima, out=out, in_=in_, data=data)


def _signed(part: Integers) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = part.integers.view(np.int8) - np.int8(part.zero)
    return signed


def _minima(part: Integers, four_bit: bool) -> Float32:
    """One for every block: formats with groups of 16 have none of their own."""
    if part.group != BLOCK:
        assert part.own_minima is None
        return np.zeros((len(part.scales), part.scales.shape[1] * part.group // BLOCK), np.float32)
    own = np.zeros_like(part.scales) if part.own_minima is None else part.own_minima
    return own - part.zero * part.scales if four_bit and part.zero else own


def _tiled(values: Float32, groups: int, tile: int) -> Float32:
    """[out, blocks * groups] -> [tile, block, group and lane]."""
    padded = _pad(_pad(values, tile, 0), groups, 1)
    blocks = padded.shape[1] // groups
    return padded.reshape(-1, tile, blocks, groups).transpose(0, 2, 3, 1).reshape(-1, blocks, groups * tile)


def _pad(array: NDArray[Any], multiple: int, axis: int) -> NDArray[Any]:
    """Zeros after the end of an axis, up to a multiple."""
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
