"""The ops on arrays, float32 throughout.

A row's result never depends on the rows beside it, bit for bit. Matrix products run on blocks of `BLOCK_ROWS` rows,
because a BLAS chooses its order of accumulation by the shape of the product. Sums run along the contiguous last axis,
where numpy's order depends on the length alone. Elementwise functions run on contiguous arrays, as numpy's vector and
strided loops may round differently.
"""

import math
from itertools import pairwise

import numpy as np

from octavo.backends.protocol import Float32
from octavo.backends.reference.workers import Workers
from octavo.graph.ops import Activation, LayerNorm, RMSNorm

BLOCK_ROWS = 16
"""Rows of a matrix product. All activations have a multiple of this many rows, the last ones being padding."""

TILE = 64
"""Features of a matrix product; the last one has what is left. Larger ones are hardly faster."""


def padded_rows(rows: int) -> int:
    """`rows`, rounded up to whole blocks."""
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def linear(workers: Workers, x: Float32, weight: Float32, bias: Float32 | None = None) -> Float32:
    """`x @ weight.T + bias`: x [rows, in], weight [out, in], bias [out] -> [rows, out].

    Every product is `[TILE, in] @ [in, BLOCK_ROWS]`. With the rows of x as columns a BLAS puts them side by side into
    its vector registers, where they are all alike; the other way round some of them fall to kernels for remainders,
    which round differently. A tile of the weight meets all blocks of x while it is in the cache.
    """
    (features, inputs), blocks = weight.shape, len(x) // BLOCK_ROWS
    columns = x.reshape(blocks, BLOCK_ROWS, inputs).transpose(0, 2, 1)
    y: Float32 = np.empty((blocks, BLOCK_ROWS, features), np.float32)

    def multiply(part: slice) -> None:
        height = min(TILE, part.stop - part.start)
        tiles = (part.stop - part.start) // height
        product = np.matmul(weight[part].reshape(tiles, 1, height, inputs), columns)
        y[:, :, part].reshape(blocks, BLOCK_ROWS, tiles, height)[...] = product.transpose(1, 3, 0, 2)

    workers.run(multiply, _tiled(features, workers.count))
    if bias is not None:
        y += bias
    return y.reshape(len(x), features)


def _tiled(features: int, shares: int) -> list[slice]:
    """Divide the features into shares of whole tiles, and apart from them what is left."""
    tiles = features // TILE
    bounds = [tiles * share // shares * TILE for share in range(shares + 1)] + [features]
    return [slice(start, stop) for start, stop in pairwise(bounds) if start < stop]


def rms_norm(op: RMSNorm, x: Float32, weight: Float32) -> Float32:
    """See `RMSNorm`: x [rows, width], normalised in runs of `len(weight)` features."""
    runs = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
    mean_square = (runs * runs).sum(axis=-1, keepdims=True) / len(weight)
    normal: Float32 = runs / np.sqrt(mean_square + op.eps)
    normal *= weight + op.offset
    return normal.reshape(x.shape)


def layer_norm(op: LayerNorm, x: Float32, weight: Float32, bias: Float32) -> Float32:
    """See `LayerNorm`: x [rows, width]."""
    centred: Float32 = x - x.sum(axis=-1, keepdims=True) / len(weight)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / len(weight)
    centred /= np.sqrt(variance + op.eps)
    centred *= weight
    centred += bias
    return centred


def rope(x: Float32, cosine: Float32, sine: Float32) -> Float32:
    """Turn the heads of x [rows, heads * 2 * half]: cosine and sine [rows, half]."""
    half = cosine.shape[1]
    pairs = x.reshape(len(x), x.shape[1] // (2 * half), 2, half)
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    cosine, sine = cosine[:, None], sine[:, None]
    turned = np.empty_like(pairs)
    np.subtract(first * cosine, second * sine, out=turned[:, :, 0])
    np.add(second * cosine, first * sine, out=turned[:, :, 1])
    return turned.reshape(x.shape)


def activation(op: Activation, x: Float32) -> Float32:
    """See `Activation`."""
    y: Float32
    match op.function:
        case "silu":
            y = x / (1 + np.exp(-x))
        case "gelu":
            y = x * (0.5 + 0.5 * _erf(x * math.sqrt(0.5)))
        case "gelu_tanh":
            y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return y


def _erf(x: Float32) -> Float32:
    """numpy has no error function. This one costs 0.1 µs an element, little beside the linears before and after."""
    return np.array([math.erf(value) for value in x.ravel().tolist()], np.float32).reshape(x.shape)
