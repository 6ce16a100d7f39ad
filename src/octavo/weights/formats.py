"""How elements are stored, and ggml's block formats turned into float32.

A block holds small integers and what scales them; `value = scale * (integer - zero) + minimum`, the scale (and minimum)
being shared by a group of 16 or 32 neighbours. Layouts, offsets in bytes, little endian (ggml-common.h):

    Q4_0  0 scale f16,                  2 low 4 bits [16]                                      32 elements, zero 8
    Q4_1  0 scale f16, 2 minimum f16,   4 low 4 bits [16]                                      32 elements
    Q5_0  0 scale f16,                  2 fifth bits u32,    6 low 4 bits [16]                 32 elements, zero 16
    Q5_1  0 scale f16, 2 minimum f16,   4 fifth bits u32,    8 low 4 bits [16]                 32 elements
    Q8_0  0 scale f16,                  2 int8 [32]                                            32 elements
    Q4_K  0 scale f16, 2 minimum f16,   4 6-bit factors [12], 16 low 4 bits [128]              8 groups of 32
    Q5_K  0 scale f16, 2 minimum f16,   4 6-bit factors [12], 16 fifth bits [32], 48 low [128] 8 groups of 32
    Q6_K  0 low 4 bits [128], 128 upper 2 bits [64], 192 int8 factors [16], 208 scale f16      16 groups of 16, zero 32

The `gguf` package has the same functions, and the tests compare bit for bit; these are several times as fast, because
they work on pieces that stay in the cache, and they spare the start-up the 0.3 s of importing it.
"""

from enum import StrEnum
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Format(StrEnum):
    """How a tensor's elements are stored. The quantised ones are ggml's block formats."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"

    @property
    def is_quantised(self) -> bool:
        return self.block_size > 1

    @property
    def block_size(self) -> int:
        """Elements in a block; 1 for the plain formats."""
        return _SIZES[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block; those of an element for the plain formats."""
        return _SIZES[self][1]

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape`, whose last dimension must be a multiple of `block_size`."""
        return prod(shape) // self.block_size * self.block_bytes


_SIZES = {
    Format.F32: (1, 4),
    Format.F16: (1, 2),
    Format.BF16: (1, 2),
    Format.Q4_0: (32, 18),
    Format.Q4_1: (32, 20),
    Format.Q5_0: (32, 22),
    Format.Q5_1: (32, 24),
    Format.Q8_0: (32, 34),
    Format.Q4_K: (256, 144),
    Format.Q5_K: (256, 176),
    Format.Q6_K: (256, 210),
}

HALVES = {
    Format.Q4_0: (0,),
    Format.Q4_1: (0, 2),
    Format.Q5_0: (0,),
    Format.Q5_1: (0, 2),
    Format.Q8_0: (0,),
    Format.Q4_K: (0, 2),
    Format.Q5_K: (0, 2),
    Format.Q6_K: (208,),
}
"""Where a block has its float16 numbers, in bytes from its start: all else in it are integers."""

_PIECE = 1 << 17
"""Elements dequantised at a time: half a megabyte of float32, so that four passes over it stay in the L2 cache."""


class _Blocks(NamedTuple):
    """`n` blocks taken apart: integers [n, groups, group size], the rest [n, groups, 1]."""

    integers: NDArray[Any]
    zero: int
    scale: Float32
    minimum: Float32 | None


def _half(blocks: Bytes, offset: int) -> Float32:
    return blocks[:, offset : offset + 2].view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """[n, bytes] -> [n, 2 * bytes]: of each `run` bytes first the low nibbles, then the high ones."""
    packed = packed.reshape(len(packed), -1, run)
    pairs = np.empty((*packed.shape[:2], 2, run), np.uint8)
    np.bitwise_and(packed, 0x0F, out=pairs[:, :, 0])
    np.right_shift(packed, 4, out=pairs[:, :, 1])
    return pairs.reshape(len(packed), -1)


def _fifth_bits(words: Bytes) -> Bytes:
    """uint8[n, 4] -> uint8[n, 32]: bit i of the little-endian word, moved to where a fifth bit belongs."""
    bits: Bytes = np.unpackbits(words, axis=1, bitorder="little")
    return bits << np.uint8(4)


def _k_factors(packed: Bytes) -> tuple[Float32, Float32]:
    """The 8 scales and 8 minima, 6 bits each, of a K block's 12 bytes: [n, 12] -> two of [n, 8, 1]."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    minima = np.concatenate([mid & 0x3F, (high >> 4) | ((mid >> 2) & 0x30)], axis=1)
    return scales[:, :, None].astype(np.float32), minima[:, :, None].astype(np.float32)


def _q4_0(b: Bytes) -> _Blocks:
    return _Blocks(_nibbles(b[:, 2:], 16)[:, None], 8, _half(b, 0)[:, None], None)


def _q4_1(b: Bytes) -> _Blocks:
    return _Blocks(_nibbles(b[:, 4:], 16)[:, None], 0, _half(b, 0)[:, None], _half(b, 2)[:, None])


def _q5_0(b: Bytes) -> _Blocks:
    return _Blocks((_nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6]))[:, None], 16, _half(b, 0)[:, None], None)


def _q5_1(b: Bytes) -> _Blocks:
    integers = (_nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8]))[:, None]
    return _Blocks(integers, 0, _half(b, 0)[:, None], _half(b, 2)[:, None])


def _q8_0(b: Bytes) -> _Blocks:
    return _Blocks(b[:, 2:].view(np.int8)[:, None], 0, _half(b, 0)[:, None], None)


def _q4_k(b: Bytes) -> _Blocks:
    scales, minima = _k_factors(b[:, 4:16])
    integers = _nibbles(b[:, 16:], 32).reshape(len(b), 8, 32)
    return _Blocks(integers, 0, _half(b, 0)[:, None] * scales, _half(b, 2)[:, None] * -minima)


def _q5_k(b: Bytes) -> _Blocks:
    scales, minima = _k_factors(b[:, 4:16])
    group = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (b[:, None, 16:48] >> group & 1) << 4
    integers = _nibbles(b[:, 48:], 32).reshape(len(b), 8, 32) | fifth
    return _Blocks(integers, 0, _half(b, 0)[:, None] * scales, _half(b, 2)[:, None] * -minima)


def _q6_k(b: Bytes) -> _Blocks:
    low = _nibbles(b[:, :128], 64).reshape(len(b), 2, 4, 32)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = (b[:, 128:192].reshape(len(b), 2, 1, 32) >> shift & 3) << 4
    scale = _half(b, 208) * b[:, 192:208].view(np.int8)
    return _Blocks((low | upper).reshape(len(b), 16, 16), 32, scale[:, :, None], None)


_TAKE_APART = {
    Format.Q4_0: _q4_0,
    Format.Q4_1: _q4_1,
    Format.Q5_0: _q5_0,
    Format.Q5_1: _q5_1,
    Format.Q8_0: _q8_0,
    Format.Q4_K: _q4_k,
    Format.Q5_K: _q5_k,
    Format.Q6_K: _q6_k,
}


class Integers(NamedTuple):
    """Quantised rows taken apart: `value = scale * integer + minimum`, exactly.

    Attributes:
        integers: [rows, elements]; unsigned with `zero` still to be subtracted, or signed.
        zero: what the integers count from.
        group: neighbours that share a scale, 16 or 32.
        scales: Float32[rows, elements / group]. own_minima: the same shape, None if the format has none.
        is_four_bit: whether the integers go from 0 to 15.
    """

    integers: NDArray[Any]
    zero: int
    group: int
    scales: Float32
    own_minima: Float32 | None
    is_four_bit: bool


def take_apart(form: Format, data: Bytes) -> Integers:
    """Quantised rows, uint8 [rows, bytes per row], as integers, scales and minima."""
    blocks = _TAKE_APART[form](data.reshape(-1, form.block_bytes))
    group = blocks.integers.shape[2]

    def by_row(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(len(data), -1)

    minima = None if blocks.minimum is None else by_row(blocks.minimum)
    four_bit = form in (Format.Q4_0, Format.Q4_1, Format.Q4_K)
    return Integers(by_row(blocks.integers), blocks.zero, group, by_row(blocks.scale), minima, four_bit)


def dequantise(form: Format, data: Bytes) -> Float32:
    """The values of quantised rows: uint8 [rows, bytes per row] -> float32 [rows, elements per row]."""
    blocks = data.reshape(-1, form.block_bytes)
    values = np.empty((len(blocks), form.block_size), np.float32)
    step = _PIECE // form.block_size
    for start in range(0, len(blocks), step):
        integers, zero, scale, minimum = _TAKE_APART[form](blocks[start : start + step])
        piece = values[start : start + step].reshape(integers.shape)
        piece[...] = integers
        if zero:
            piece -= zero
        piece *= scale
        if minimum is not None:
            piece += minimum
    return values.reshape(len(data), data.shape[1] // form.block_bytes * form.block_size)
