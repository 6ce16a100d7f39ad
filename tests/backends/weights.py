"""Weights of every format at random, and what the native kernels make of numbers."""

import numpy as np
from gguf import GGMLQuantizationType, quants

from octavo.graph.builder import GraphBuilder
from octavo.graph.ops import Graph
from octavo.weights.tensor import Format, Tensor

QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def random_tensor(name: str, form: str, rows: int, width: int, rng: np.random.Generator) -> Tensor:
    """A weight in any storage format."""
    values = rng.normal(size=(rows, width)).astype(np.float32)
    match form:
        case "F32":
            return Tensor(name, values.shape, Format.F32, values)
        case "F16":
            return Tensor(name, values.shape, Format.F16, values.astype(np.float16))
        case "BF16":
            return Tensor(name, values.shape, Format.BF16, (values.view(np.uint32) >> 16).astype(np.uint16))
        case "Q4_K" | "Q5_K" | "Q6_K":  # the gguf package only reads these: any bytes with sane scales are a weight
            size = Format(form).block_bytes
            data = rng.integers(0, 256, (rows, width // 256, size), dtype=np.uint8)
            halves = rng.uniform(0.001, 0.01, (rows, width // 256, 2)).astype(np.float16).view(np.uint8)
            if form == "Q6_K":
                data[:, :, 208:210] = halves[:, :, :2]
            else:
                data[:, :, :4] = halves
            return Tensor(name, values.shape, Format(form), data.reshape(rows, -1))
        case _:
            data = quants.quantize(values, GGMLQuantizationType[form])
            return Tensor(name, values.shape, Format(form), data)


def rounded(x: np.ndarray, limit: int, *, residuals: bool = True) -> np.ndarray:
    """Activations as the kernels see them: whole numbers up to `limit`, scaled per row and 32 features.

    Of whole numbers up to 127, eight each have a scale, which is the 32 features' times a whole number.

    Args:
        residuals: what 127 steps leave of the groups with the largest ones is known in 252 more.
    """
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))
    blocks = padded.reshape(len(x), -1, 32)
    most = np.abs(blocks).max(axis=2, keepdims=True)
    if limit > 127:
        inverse = np.divide(np.float32(limit), most, out=np.zeros_like(most), where=most > 0)
        return _in_steps(blocks, inverse, most / np.float32(limit)).reshape(len(x), -1)[:, : x.shape[1]]
    scale = most / np.float32(limit * 1024)
    # 16 a + 8 half + 4 c + j: [row, block, a, c, half, j]
    groups = blocks.reshape(len(x), -1, 2, 2, 2, 4).swapaxes(3, 4)
    share = np.divide(np.float32(1024), most, out=np.zeros_like(most), where=most > 0)
    factors = np.floor(np.abs(groups).max(axis=(4, 5)).reshape(*blocks.shape[:2], 4) * share).astype(np.float32) + 1
    steps = (scale * factors).reshape(*groups.shape[:4], 1, 1)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=most[..., None, None, None] > 0)
    seen = _in_steps(groups, inverse, steps)
    if residuals:
        finer = steps / np.float32(252)
        inverse = np.divide(np.float32(1), finer, out=np.zeros_like(finer), where=finer > 0)
        chosen = _largest(steps.reshape(len(x), -1)).reshape(steps.shape)
        seen = np.where(chosen, seen + _in_steps(groups - seen, inverse, finer), seen)
    return seen.swapaxes(3, 4).reshape(len(x), -1)[:, : x.shape[1]]


def _in_steps(x: np.ndarray, inverse: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The nearest whole numbers of steps."""
    return np.rint(x * inverse).astype(np.float64) * steps


def _largest(steps: np.ndarray) -> np.ndarray:
    """Which groups of a row have residuals: of 126 blocks at a time, one group for every six blocks."""
    chosen = np.zeros(steps.shape, bool)
    for first in range(0, steps.shape[1], 504):
        some = steps[:, first : first + 504]
        keys = some.astype(np.float32).view(np.int32) & -512 | 511 - np.arange(some.shape[1])
        count = -(-some.shape[1] // 24)
        np.put_along_axis(chosen[:, first : first + 504], np.argsort(-keys, axis=1)[:, :count], True, axis=1)
    return chosen


def log_softmax(logits: np.ndarray) -> np.ndarray:
    peak = logits.max(1, keepdims=True)
    result: np.ndarray = logits - np.log(np.exp(logits - peak).sum(1, keepdims=True)) - peak
    return result


def limit_of(form: str) -> int:
    """The largest whole number that the input of a weight of that format is rounded to."""
    return 127 if form.startswith("Q4") else 32767


def linear_graph(width: int, out: int, *, last: bool = True) -> Graph:
    """Token -> embedding row -> one linear: a product of any shape with any rows.

    The matrix of the logits is never brought to 4 bits; unless the linear is to be the `last`, it is followed by
    another, whose result is added.
    """
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, width))
    y = g.linear(x, "weight", out)
    return g.finish(y if last else y + g.linear(x, "zero", out))


def attention_graph(heads: int, kv_heads: int, head_dim: int, window: int | None) -> Graph:
    """Token -> queries, keys and values from a table -> attention."""
    g = GraphBuilder()
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    q, k, v = g.split(g.embedding("table", 64, sum(widths)), widths)
    y = g.attention(q, k, v, layer=0, head_dim=head_dim, window=window)
    return g.finish(g.select_rows(y))
