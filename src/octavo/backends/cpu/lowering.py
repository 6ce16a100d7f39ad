"""From a graph to a native plan: buffers for values, weights repacked, one native op per node.

A slice becomes a view of what it cuts, a residual sum is added by the linear that it follows, an activation function
multiplies its result by the gate.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from octavo.backends.common.checks import check_weights
from octavo.backends.common.rotation import Rotations
from octavo.backends.cpu._native import Plan
from octavo.backends.cpu.quantization import bits_by_weight
from octavo.backends.cpu.repack import PackedWeight, pack
from octavo.backends.protocol import Float32
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

(
    EMBED,
    LINEAR,
    RMS_NORM,
    LAYER_NORM,
    ROPE,
    ATTENTION,
    ACTIVATION,
    ADD,
    MULTIPLY,
    SCALE,
    SELECT,
    QUANTISE,
    STORE_KV,
) = range(13)
"""Kinds of native/plan.h."""

FUNCTIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}

View = tuple[int, int]
"""A value: the buffer that holds it, and its first column there."""

NOWHERE: View = (-1, 0)

MAX_HEAD_DIM = 512
"""Of native/kernels.h."""

Names = tuple[str, ...]


class Lowering:
    """Fills a plan. What the plan points to is kept in `arrays`, for as long as the plan lives.

    Args:
        graph: with sibling linears merged.
        tensors: the weights by name.
        pages: by layer, uint8 [num_pages, bytes of a page]. page_size: tokens of a page.
        kv_type: how keys and values are stored, a kind of native/kernels.h.
        max_positions: rotary tables are made for that many.
        quantization: of weights that are not quantised yet, "q8", "q4" or None.
        progress: called with (weights packed, weights in all).
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        pages: list[NDArray[np.uint8]],
        page_size: int,
        kv_type: int,
        max_positions: int,
        quantization: str | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.arrays: list[object] = [pages]
        self.weight_bytes = 0
        self._plan = plan
        self._tile = plan.tile
        self._graph = graph
        self._tensors = tensors
        self._pages = pages
        self._page_size = page_size
        self._kv_type = kv_type
        self._quantization = quantization
        self._max_positions = max_positions
        self._views: dict[int, View] = {}
        self._free: dict[tuple[int, bool], list[int]] = {}
        self._keys: dict[int, tuple[int, bool]] = {}
        self._rotary: dict[Rope, int] = {}
        check_weights(graph, tensors)
        packed = self._pack(progress)
        self._lower(packed)
        plan.finish()

    # --- weights --------------------------------------------------------------------------------------------------

    def _pack(self, progress: Callable[[int, int], None] | None) -> dict[Names, PackedWeight]:
        """Repack every matrix once, the largest first, on two threads (numpy releases the GIL)."""
        matrices = {names for node in self._graph.nodes if (names := _matrix(node)) is not None}
        shapes = self._graph.parameters()
        units = sorted(matrices, key=lambda names: -sum(shapes[name][0] * shapes[name][1] for name in names))
        bits = bits_by_weight(self._graph, self._quantization)
        packed = {}
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(
                lambda names: pack([self._tensors[name] for name in names], self._tile, bits[names[0]]), units
            )
            for names, weight in zip(units, results, strict=True):
                packed[names] = weight
                self.weight_bytes += weight.data.nbytes
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
            weight.kind, weight.group, weight.half_scales, weight.minima, weight.out, weight.in_, weight.data, bias
        )

    # --- buffers --------------------------------------------------------------------------------------------------

    def _allocate(self, width: int, selected: bool) -> int:
        key = (-(-width // self._tile) * self._tile, selected)
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
        fused = _fused(self._graph)
        inner = {reader: index for index, reader in fused.items()}
        # A buffer is free after the last node that reads any view of it; a fused node reads where its reader stands.
        owner: dict[int, int] = {}
        for index, node in enumerate(nodes):
            owner[index] = owner[node.inputs[0]] if isinstance(node.op, Slice) else index
        last: dict[int, int] = {}
        for index, node in enumerate(nodes):
            for source in node.inputs:
                last[owner[source]] = max(last.get(owner[source], 0), fused.get(index, index))
        ending: dict[int, list[int]] = {}
        for value, index in last.items():
            ending.setdefault(index, []).append(value)

        for index, node in enumerate(nodes):
            if index in fused:
                continue  # computed where its reader stands
            if isinstance(node.op, Slice):
                buffer, column = self._views[node.inputs[0]]
                self._views[index] = (buffer, column + node.op.start)
            else:
                out = (self._allocate(node.width, selected[index]), 0)
                self._views[index] = out
                if index in inner:
                    self._emit(nodes[inner[index]], packed, out, self._views[_other(node, inner[index])])
                else:
                    self._emit(node, packed, out)
            for value in ending.get(index, []):
                if value in self._views:
                    buffer = self._views[value][0]
                    self._free[self._keys[buffer]].append(buffer)

    def _emit(self, node: Node, packed: dict[Names, PackedWeight], out: View, second: View = NOWHERE) -> None:
        """Add a node's ops. `second`: what a linear adds to its result, or an activation multiplies its by."""
        x, y, z = [*(self._views[source] for source in node.inputs), NOWHERE, NOWHERE, NOWHERE][:3]
        match node.op:
            case Linear(weights=weights, biases=biases):
                names = tuple(weight.name for weight in weights)
                bias = None
                if biases:
                    bias = self._floats(tuple(parameter.name for parameter in biases), padded=packed[names].out)
                weight = self._weight(names, packed, bias)
                if packed[names].is_quantised:
                    self._add(QUANTISE, packed[names].width, x, index=weight)
                    x = NOWHERE
                self._add(LINEAR, node.width, x, second, out, index=weight)
            case Embedding(table=table, index=index):
                weight = self._weight((table.name,), packed)
                self._add(EMBED, node.width, out=out, index=weight, by_position=index == "position")
            case RMSNorm(weight=parameter, eps=eps, offset=offset):
                array = self._floats((parameter.name,), offset=offset)
                self._add(RMS_NORM, node.width, x, out=out, length=len(array), factor=eps, weight=array)
            case LayerNorm(weight=parameter, bias=shift, eps=eps):
                array, shifts = self._floats((parameter.name,)), self._floats((shift.name,))
                self._add(LAYER_NORM, node.width, x, out=out, factor=eps, weight=array, bias=shifts)
            case Rope() as op:
                self._add(ROPE, node.width, x, out=out, index=self._rotary_table(op))
            case Attention() as op:
                layer = self._layer(op)
                self._add(STORE_KV, op.num_kv_heads * op.head_dim, y, z, index=layer)
                self._add(ATTENTION, node.width, x, out=out, index=layer)
            case Activation(function=function):
                self._add(ACTIVATION, node.width, x, second, out, index=FUNCTIONS[function])
            case Add():
                self._add(ADD, node.width, x, y, out)
            case Multiply():
                self._add(MULTIPLY, node.width, x, y, out)
            case Scale(factor=factor):
                self._add(SCALE, node.width, x, out=out, factor=factor)
            case SelectRows():
                self._add(SELECT, node.width, x, out=out)
            case other:
                raise TypeError(f"no native op for {type(other).__name__}")

    def _layer(self, op: Attention) -> int:
        return self._plan.add_layer(
            op.num_heads,
            op.num_kv_heads,
            op.head_dim,
            self._page_size,
            op.window or 0,
            op.scale,
            self._kv_type,
            self._pages[op.layer],
        )

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
        width: int,
        x: View = NOWHERE,
        y: View = NOWHERE,
        out: View = NOWHERE,
        *,
        length: int = 0,
        index: int = 0,
        factor: float = 0.0,
        by_position: bool = False,
        weight: Float32 | None = None,
        bias: Float32 | None = None,
    ) -> None:
        self._plan.add_op(kind, x, y, out, width, length, index, factor, by_position, weight, bias)


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


def _fused(graph: Graph) -> dict[int, int]:
    """Nodes that are computed together with their only reader, and that reader.

    A linear with the sum that adds an earlier value to it; an activation function with the product of it and an
    earlier value.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    found: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        match readers.get(index, []):
            case [reader] if reader not in found.values():
                match node.op, graph.nodes[reader].op:
                    case Activation(), Multiply():
                        found[index] = reader
                    case Linear(), Add():
                        # A linear adds whole tiles: a slice, unlike a buffer, may end within one.
                        if not isinstance(graph.nodes[_other(graph.nodes[reader], index)].op, Slice):
                            found[index] = reader
    return found


def _other(node: Node, inner: int) -> int:
    """The other input of a sum or product."""
    first, second = node.inputs
    return second if first == inner else first
