"""From a graph to a native plan: buffers for values, weights repacked, one native op per node.

A slice becomes a view of what it cuts; what `fusion.py` found together becomes one op.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from octavo.backends.common.checks import check_weights, finite
from octavo.backends.common.rotation import Rotations
from octavo.backends.cpu._native import Plan
from octavo.backends.cpu.fusion import Gated, find_fusions, other_input
from octavo.backends.cpu.memory import Slabs
from octavo.backends.cpu.quantization import bits_by_weight
from octavo.backends.cpu.repack import U4, PackedWeight, pack
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
    GATED_LINEAR,
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
) = range(14)
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
        self._weights: dict[tuple[Names, Names], int] = {}
        self._precise = _attended(graph)
        self._is_selected = False
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
        memory = Slabs()

        def pack_unit(names: Names) -> PackedWeight:
            return pack([finite(self._tensors[name]) for name in names], self._tile, memory, bits[names[0]])

        with ThreadPoolExecutor(2) as pool:
            results = pool.map(pack_unit, units)
            for names, weight in zip(units, results, strict=True):
                packed[names] = weight
                self.weight_bytes += weight.data.nbytes
                if progress is not None:
                    progress(len(packed), len(units))
        return packed

    def _floats(self, names: Names, padded: int = 0, offset: float = 0.0) -> Float32:
        """Small parameters as one float32 array, zeros after its end up to `padded`."""
        parts = [finite(self._tensors[name]).to_float32().reshape(-1) for name in names]
        array = np.concatenate(parts) + np.float32(offset)
        array = np.pad(array, (0, max(padded - len(array), 0)))
        self.arrays.append(array)
        return array

    def _linear_weight(self, op: Linear, packed: dict[Names, PackedWeight]) -> int:
        """The plan's index of a linear's weight, with its bias."""
        names = tuple(weight.name for weight in op.weights)
        key = (names, tuple(bias.name for bias in op.biases))
        if key not in self._weights:
            bias = self._floats(key[1], padded=packed[names].out) if op.biases else None
            self._weights[key] = self._add_weight(packed[names], bias, precise=names in self._precise)
        return self._weights[key]

    def _add_weight(self, weight: PackedWeight, bias: Float32 | None = None, *, precise: bool = False) -> int:
        self.arrays.append(weight)
        return self._plan.add_weight(
            weight.kind,
            weight.group,
            weight.half_scales,
            weight.minima,
            precise and weight.kind == U4,
            weight.out,
            weight.in_,
            weight.data,
            bias,
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
        fusions = find_fusions(self._graph, lambda op: packed[tuple(weight.name for weight in op.weights)].is_quantised)
        joined = fusions.joined
        # A buffer is free after the last node that reads any view of it; a joined node reads where its reader stands.
        owner: dict[int, int] = {}
        for index, node in enumerate(nodes):
            owner[index] = owner[node.inputs[0]] if isinstance(node.op, Slice) else index
        last: dict[int, int] = {}
        for index, node in enumerate(nodes):
            for source in node.inputs:
                last[owner[source]] = max(last.get(owner[source], 0), joined.get(index, index))
        ending: dict[int, list[int]] = {}
        for value, index in last.items():
            ending.setdefault(index, []).append(value)
        inner = {reader: index for index, reader in joined.items() if reader not in fusions.gated}

        for index, node in enumerate(nodes):
            self._is_selected = selected[index]
            if index in joined:
                continue  # computed where its reader stands
            if isinstance(node.op, Slice):
                buffer, column = self._views[node.inputs[0]]
                self._views[index] = (buffer, column + node.op.start)
            elif index in fusions.gated:
                self._emit_gated(fusions.gated[index], nodes[fusions.readers[index]], packed)
            else:
                self._views[index] = out = (self._allocate(node.width, selected[index]), 0)
                second = self._views[other_input(node, inner[index])] if index in inner else NOWHERE
                computed = nodes[inner[index]] if index in inner else node
                reader = nodes[fusions.readers[index]] if index in fusions.readers else None
                quantised = computed.inputs[0] if computed.inputs and computed.inputs[0] in fusions.readers else None
                self._emit(computed, packed, out, second, reader, quantised, gated=quantised in fusions.gated)
            for value in ending.get(index, []):
                if value in self._views:
                    buffer = self._views[value][0]
                    self._free[self._keys[buffer]].append(buffer)

    def _emit_gated(self, gated: Gated, reader: Node, packed: dict[Names, PackedWeight]) -> None:
        """Add the ops of a gated linear, whose result is left for the linear `reader`."""
        linear = self._graph.nodes[gated.linear]
        assert isinstance(linear.op, Linear)
        assert isinstance(reader.op, Linear)
        weight = self._linear_weight(linear.op, packed)
        self._quantise(linear, packed, weight)
        self._add(
            GATED_LINEAR,
            linear.width // 2,
            index=weight,
            function=FUNCTIONS[gated.function],
            reader=self._linear_weight(reader.op, packed),
        )

    def _quantise(self, linear: Node, packed: dict[Names, PackedWeight], weight: int) -> None:
        source = linear.inputs[0]
        self._add(QUANTISE, self._graph.nodes[source].width, self._views[source], reader=weight)

    def _emit(
        self,
        node: Node,
        packed: dict[Names, PackedWeight],
        out: View,
        second: View,
        reader: Node | None,
        quantised: int | None,
        *,
        gated: bool,
    ) -> None:
        """Add a node's ops.

        Args:
            second: what a linear adds to its result, or an activation multiplies its by.
            reader: the linear that the result is quantised for.
            quantised: the input of a linear, if it was quantised where it was computed; `gated`: by a gated linear.
        """
        x, y, z = [*(self._views.get(source, NOWHERE) for source in node.inputs), NOWHERE, NOWHERE, NOWHERE][:3]
        match node.op:
            case Linear() as op:
                weight = self._linear_weight(op, packed)
                if packed[tuple(weight.name for weight in op.weights)].is_quantised:
                    if quantised is None:
                        self._quantise(node, packed, weight)
                    x = NOWHERE
                self._add(LINEAR, node.width, x, second, out, index=weight, records=int(gated))
            case Embedding(table=table, index=index):
                weight = self._add_weight(packed[table.name,])
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
                quantises = -1
                if reader is not None:
                    assert isinstance(reader.op, Linear)
                    quantises = self._linear_weight(reader.op, packed)
                self._add(ATTENTION, node.width, x, out=out, index=layer, reader=quantises)
            case Activation(function=function):
                self._add(ACTIVATION, node.width, x, second, out, function=FUNCTIONS[function])
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
        function: int = 0,
        reader: int = -1,
        records: int = 0,
        factor: float = 0.0,
        by_position: bool = False,
        weight: Float32 | None = None,
        bias: Float32 | None = None,
    ) -> None:
        self._plan.add_op(
            kind,
            self._is_selected,
            x,
            y,
            out,
            width,
            length,
            index,
            function,
            reader,
            records,
            factor,
            by_position,
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


def _attended(graph: Graph) -> set[Names]:
    """The weights of linears whose results are queries, keys or values.

    Softmax multiplies their errors: with inputs of 16 bits instead of 8 a model's predictions diverge half as much from
    those in float32, at a tenth of the work of its linears.
    """
    found = set()
    for node in graph.nodes:
        if isinstance(node.op, Attention):
            for source in node.inputs:
                while not isinstance(graph.nodes[source].op, Linear) and len(graph.nodes[source].inputs) == 1:
                    (source,) = graph.nodes[source].inputs
                match graph.nodes[source].op:
                    case Linear(weights=weights):
                        found.add(tuple(weight.name for weight in weights))
    return found
