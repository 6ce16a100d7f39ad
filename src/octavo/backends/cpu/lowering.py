"""From a graph to a native plan: buffers for values, weights repacked, one native op per node.

A slice becomes a view of what it cuts, and a residual sum is added by the linear that it follows.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from octavo.backends.cpu._native import Plan
from octavo.backends.cpu.repack import TILE, PackedWeight, pack
from octavo.backends.protocol import Float32
from octavo.backends.reference.loading import check_weights
from octavo.backends.reference.rotation import Rotations
from octavo.graph.ops import (
    Activation,
    Add,
    Attention,
    Embedding,
    Graph,
    LayerNorm,
    Linear,
    Multiply,
    Node,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
)
from octavo.weights.tensor import Tensor

EMBED, LINEAR, RMS_NORM, LAYER_NORM, ROPE, ATTENTION, ACTIVATION, ADD, MULTIPLY, SCALE, SELECT = range(11)
"""Kinds of native/plan.h."""

FUNCTIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}

View = tuple[int, int]
"""A value: the buffer that holds it, and its first column there."""

NOWHERE: View = (-1, 0)

PRECISE = True
"""Whether inputs of integer linears are quantised twice, the second time what the first left over: 15 bits, not 8.

Against float32 activations on the default model and 700 tokens of English the mean Kullback-Leibler divergence is then
below 0.00005; with 8 bits it is 0.004, and 3 to 4 % of the most probable tokens change. It costs a second pass over the
weights, which are in the cache by then.
"""

Names = tuple[str, ...]


class Lowering:
    """Fills a plan. What the plan points to is kept in `arrays`, for as long as the plan lives.

    Args:
        graph: with sibling linears merged.
        tensors: the weights by name.
        pages: by layer, the float16 keys and values as uint16 [num_pages, page_size, kv heads, head size].
        max_positions: rotary tables are made for that many.
        progress: called with (weights packed, weights in all).
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        pages: list[tuple[NDArray[np.uint16], NDArray[np.uint16]]],
        max_positions: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.arrays: list[object] = [pages]
        self.weight_bytes = 0
        self._plan = plan
        self._graph = graph
        self._tensors = tensors
        self._pages = pages
        self._max_positions = max_positions
        self._views: dict[int, View] = {}
        self._free: dict[tuple[int, bool], list[int]] = {}
        self._keys: dict[int, tuple[int, bool]] = {}
        self._weights: dict[Names, tuple[int, PackedWeight]] = {}
        self._rotary: dict[Rope, int] = {}
        check_weights(graph, tensors)
        packed = self._pack(progress)
        self._lower(packed)

    # --- weights --------------------------------------------------------------------------------------------------

    def _pack(self, progress: Callable[[int, int], None] | None) -> dict[Names, PackedWeight]:
        """Repack every matrix once, the largest first, on two threads (numpy releases the GIL)."""
        matrices = {names for node in self._graph.nodes if (names := _matrix(node)) is not None}
        shapes = self._graph.parameters()
        units = sorted(matrices, key=lambda names: -sum(shapes[name][0] * shapes[name][1] for name in names))
        packed = {}
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda names: pack([self._tensors[name] for name in names]), units)
            for names, weight in zip(units, results, strict=True):
                packed[names] = weight
                self.weight_bytes += weight.nbytes
                if progress is not None:
                    progress(len(packed), len(units))
        return packed

    def _floats(self, names: Names, padded: int = 0, offset: float = 0.0) -> Float32:
        """Small parameters as one float32 array, zeros after its end up to `padded`."""
        array = np.concatenate([self._tensors[name].to_float32().reshape(-1) for name in names]) + np.float32(offset)
        array = np.pad(array, (0, max(padded - len(array), 0)))
        self.arrays.append(array)
        return array

    def _weight(self, names: Names, packed: dict[Names, PackedWeight], bias: Float32 | None = None) -> int:
        weight = packed[names]
        self.arrays.append(weight)
        return self._plan.add_weight(
            weight.kind, weight.group, weight.out, weight.in_, weight.data, weight.scales, weight.minima, bias
        )

    # --- buffers --------------------------------------------------------------------------------------------------

    def _allocate(self, width: int, selected: bool) -> int:
        key = (-(-width // TILE) * TILE, selected)
        free = self._free.setdefault(key, [])
        if free:
            return free.pop()
        buffer = self._plan.add_buffer(*key)
        self._keys[buffer] = key
        return buffer

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _lower(self, packed: dict[Names, PackedWeight]) -> None:
        nodes = self._graph.nodes
        selected = _selected(self._graph)
        fused = _residuals(self._graph)  # linear -> the sum that follows it
        sums = {add: linear for linear, add in fused.items()}
        # A buffer is free after the last node that reads any view of it.
        owner: dict[int, int] = {}
        for index, node in enumerate(nodes):
            owner[index] = owner[node.inputs[0]] if isinstance(node.op, Slice) else index
        last = {}
        for index, node in enumerate(nodes):
            for source in node.inputs:
                last[owner[source]] = index
        ending: dict[int, list[int]] = {}
        for value, index in last.items():
            ending.setdefault(index, []).append(value)

        for index, node in enumerate(nodes):
            if index in fused:
                continue  # computed where its sum stands
            if isinstance(node.op, Slice):
                buffer, column = self._views[node.inputs[0]]
                self._views[index] = (buffer, column + node.op.start)
            else:
                out = (self._allocate(node.width, selected[index]), 0)
                self._views[index] = out
                if index in sums:
                    self._emit_linear(nodes[sums[index]], packed, out, residual=_other(node, sums[index]))
                else:
                    self._emit(node, packed, out)
            for value in ending.get(index, []) + (ending.get(sums[index], []) if index in sums else []):
                if value in self._views:
                    buffer = self._views[value][0]
                    self._free[self._keys[buffer]].append(buffer)

    def _emit_linear(
        self, node: Node, packed: dict[Names, PackedWeight], out: View, residual: int | None = None
    ) -> None:
        op = node.op
        assert isinstance(op, Linear)
        names = tuple(weight.name for weight in op.weights)
        bias = None
        if op.biases:
            bias = self._floats(tuple(parameter.name for parameter in op.biases), padded=packed[names].out)
        weight = self._weight(names, packed, bias)
        z = NOWHERE if residual is None else self._views[residual]
        self._add(LINEAR, node, out, z=z, length=packed[names].width, index=weight, precise=PRECISE)

    def _emit(self, node: Node, packed: dict[Names, PackedWeight], out: View) -> None:
        match node.op:
            case Linear():
                self._emit_linear(node, packed, out)
            case Embedding(table=table, index=index):
                weight = self._weight((table.name,), packed)
                self._add(EMBED, node, out, index=weight, by_position=index == "position")
            case RMSNorm(weight=weight, eps=eps, offset=offset):
                array = self._floats((weight.name,), offset=offset)
                self._add(RMS_NORM, node, out, length=len(array), factor=eps, weight=array)
            case LayerNorm(weight=weight, bias=bias, eps=eps):
                scale, shift = self._floats((weight.name,)), self._floats((bias.name,))
                self._add(LAYER_NORM, node, out, factor=eps, weight=scale, bias=shift)
            case Rope() as op:
                self._add(ROPE, node, out, index=self._rotary_table(op))
            case Attention() as op:
                keys, values = self._pages[op.layer]
                layer = self._plan.add_layer(
                    op.num_heads, op.num_kv_heads, op.head_dim, keys.shape[1], op.window or 0, op.scale, keys, values
                )
                self._add(ATTENTION, node, out, index=layer)
            case Activation(function=function):
                self._add(ACTIVATION, node, out, index=FUNCTIONS[function])
            case Add():
                self._add(ADD, node, out)
            case Multiply():
                self._add(MULTIPLY, node, out)
            case Scale(factor=factor):
                self._add(SCALE, node, out, factor=factor)
            case SelectRows():
                self._add(SELECT, node, out)
            case other:
                raise TypeError(f"no native op for {type(other).__name__}")

    def _rotary_table(self, op: Rope) -> int:
        if op not in self._rotary:
            positions = np.arange(self._max_positions, dtype=np.int64)
            cosine, sine = (np.ascontiguousarray(table) for table in Rotations().at(op, positions))
            self.arrays += [cosine, sine]
            self._rotary[op] = self._plan.add_rotary(op.head_dim // 2, cosine, sine)
        return self._rotary[op]

    def _add(
        self,
        kind: int,
        node: Node,
        out: View,
        *,
        z: View | None = None,
        length: int = 0,
        index: int = 0,
        factor: float = 0.0,
        by_position: bool = False,
        precise: bool = False,
        weight: Float32 | None = None,
        bias: Float32 | None = None,
    ) -> None:
        inputs = [self._views[source] for source in node.inputs] + [NOWHERE] * 3
        third = inputs[2] if z is None else z
        self._plan.add_op(
            kind,
            inputs[0],
            inputs[1],
            third,
            out,
            node.width,
            length,
            index,
            factor,
            by_position,
            precise,
            weight,
            bias,
        )


def _matrix(node: Node) -> Names | None:
    match node.op:
        case Linear(weights=weights):
            return tuple(weight.name for weight in weights)
        case Embedding(table=table):
            return (table.name,)
    return None


def _selected(graph: Graph) -> list[bool]:
    """For every node whether its rows are those of the logits."""
    selected: list[bool] = []
    for node in graph.nodes:
        selected.append(isinstance(node.op, SelectRows) or any(selected[source] for source in node.inputs))
    return selected


def _residuals(graph: Graph) -> dict[int, int]:
    """Linears whose only reader is a sum with an earlier value: the sum."""
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    found = {}
    for index, node in enumerate(graph.nodes):
        match readers.get(index, []):
            case [reader] if isinstance(node.op, Linear) and isinstance(graph.nodes[reader].op, Add):
                other = _other(graph.nodes[reader], index)
                if other < index:
                    found[index] = reader
    return found


def _other(add: Node, linear: int) -> int:
    first, second = add.inputs
    return second if first == linear else first
