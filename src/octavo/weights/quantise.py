"""Quantising float weights at load: blocks of 32 inputs with a float16 scale (8 bits) or scale and minimum (4 bits)."""

import numpy as np
from numpy.typing import NDArray

from octavo.weights.formats import Integers

Float32 = NDArray[np.float32]

BLOCK = 32

_PIECE = 1 << 18
"""Elements quantised at a time: what is computed on the way takes some twenty bytes for each."""


def quantise(values: Float32, bits: int) -> Integers:
    """Rows [rows, elements] as integers of 8 or 4 bits per block of 32 elements.

    8 bits are Q8_0's: `scale * q`, q from -127 to 127. 4 bits are Q4_1's: `scale * q + minimum`, q from 0 to 15; scale
    and minimum come from the block's extremes, or are fitted to the integers these led to where that is nearer.
    """
    step = max(1, _PIECE // max(values.shape[1], 1))
    pieces = [_quantise(values[start : start + step], bits) for start in range(0, max(len(values), 1), step)]
    integers, scales = (np.concatenate(parts) for parts in zip(*((p.integers, p.scales) for p in pieces), strict=True))
    minima = [piece.own_minima for piece in pieces if piece.own_minima is not None]
    return pieces[0]._replace(integers=integers, scales=scales, own_minima=np.concatenate(minima) if minima else None)


def _quantise(values: Float32, bits: int) -> Integers:
    rows, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % BLOCK)), mode="edge")
    blocks = padded.reshape(rows, -1, BLOCK)
    if bits == 8:
        scales = _half(np.abs(blocks).max(axis=2) / np.float32(127))
        integers = _rounded(blocks, scales, None, -127, 127).astype(np.int8)
        return Integers(integers.reshape(rows, -1)[:, :width], 0, BLOCK, scales, None, False)
    lowest, highest = blocks.min(axis=2), blocks.max(axis=2)
    scales, minima = _half((highest - lowest) / np.float32(15)), _half(lowest)
    q = _rounded(blocks, scales, minima, 0, 15)
    error = _squared_error(blocks, q, scales, minima)
    fitted = _fitted(blocks, q, scales, minima)
    better = _squared_error(blocks, _rounded(blocks, *fitted, 0, 15), *fitted) < error
    scales, minima = np.where(better, fitted[0], scales), np.where(better, fitted[1], minima)
    q = _rounded(blocks, scales, minima, 0, 15)
    return Integers(q.astype(np.uint8).reshape(rows, -1)[:, :width], 0, BLOCK, scales, minima, True)


def _half(values: Float32) -> Float32:
    """Rounded to float16; what is too large for it stays as it is."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(halves), halves, values)


def _rounded(blocks: Float32, scales: Float32, minima: Float32 | None, low: int, high: int) -> Float32:
    """The nearest integers, as floats; those of a block without a scale are 0."""
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    shifted = blocks if minima is None else blocks - minima[:, :, None]
    return np.clip(np.rint(shifted * inverse[:, :, None]), low, high)


def _squared_error(blocks: Float32, q: Float32, scales: Float32, minima: Float32) -> Float32:
    error: Float32 = np.square(scales[:, :, None] * q + minima[:, :, None] - blocks).sum(axis=2)
    return error


def _fitted(blocks: Float32, q: Float32, scales: Float32, minima: Float32) -> tuple[Float32, Float32]:
    """The scale and minimum that are nearest to the values for the given integers, by least squares."""
    mean_q, mean_x = q.mean(axis=2), blocks.mean(axis=2)
    centred = q - mean_q[:, :, None]
    variance = np.square(centred).sum(axis=2)
    covariance = (centred * (blocks - mean_x[:, :, None])).sum(axis=2)
    fitted = _half(np.divide(covariance, variance, out=scales.copy(), where=variance > 0))
    return fitted, np.where(variance > 0, _half(mean_x - fitted * mean_q), minima)
