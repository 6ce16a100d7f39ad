"""Weights as the backend multiplies with them: float32, those of merged linears one below the other."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from octavo.backends.common.checks import check_weights, finite
from octavo.backends.protocol import Float32
from octavo.graph.ops import Graph, Linear, Op
from octavo.weights.tensor import Tensor

Names = tuple[str, ...]

_THREADS = 2


def load_weights(
    graph: Graph, tensors: Mapping[str, Tensor], progress: Callable[[int, int], None] | None = None
) -> list[tuple[Float32, ...]]:
    """Read and dequantise what a graph needs.

    Args:
        graph: the weights' names and shapes.
        tensors: the checkpoint; it may hold more.
        progress: called with (elements loaded, elements in all) after every weight.

    Returns:
        For every node its op's arrays: for a linear all weights as one [out, in], and all biases as one [out] if there
        are any; for other ops one for each parameter. A weight in two places is one array.

    Raises:
        CheckpointError: weights are missing, have other shapes or values that are not finite.
    """
    check_weights(graph, tensors)
    shapes = graph.parameters()
    found = {name: tensors[name] for name in shapes}

    def size(names: Names) -> int:
        return sum(prod(shapes[name]) for name in names)

    def load(names: Names) -> Float32:
        parts = [finite(found[name]).to_float32() for name in names]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    # The largest first: the two threads then end at about the same time.
    units = sorted({names for node in graph.nodes for names in _units(node.op)}, key=size, reverse=True)
    arrays: dict[Names, Float32] = {}
    done, total = 0, sum(map(size, units))
    with ThreadPoolExecutor(_THREADS) as pool:
        for names, array in zip(units, pool.map(load, units), strict=True):
            arrays[names] = array
            done += size(names)
            if progress is not None:
                progress(done, total)
    return [tuple(arrays[names] for names in _units(node.op)) for node in graph.nodes]


def _units(op: Op) -> list[Names]:
    """The parameters of an op, by name, grouped as they become arrays."""
    if isinstance(op, Linear):
        units = (op.weights, op.biases) if op.biases else (op.weights,)
        return [tuple(parameter.name for parameter in unit) for unit in units]
    return [(parameter.name,) for parameter in op.parameters]
