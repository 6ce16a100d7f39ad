"""From a graph to a native plan: buffers for values, one native operation per node.

A slice becomes a view of what it cuts; what `fusion.py` found together becomes one operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.backends.common.rotation import Rotations
from octavo.backends.cpu._native import Function, KvType, Plan, Value
from octavo.backends.cpu.fusion import find_fusions, other_input
from octavo.backends.cpu.packing import Parameters
from octavo.graph.ops import (
    Activation,
    Add,
    Attention,
    Embedding,
    Graph,
    LayerNorm,
    Linear,
    Multiply,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
)


@dataclass(frozen=True, slots=True)
class KvPages:
    """Where keys and values are kept.

    Attributes:
        layers: by layer, uint8 [num_pages, bytes of a page].
        size: tokens of a page. type: how their keys and values are stored.
    """

    layers: Sequence[NDArray[np.uint8]]
    size: int
    type: KvType


class Lowering:
    """Fills a plan. What the plan points to is kept in `arrays`, for as long as the plan lives.

    Args:
        graph: with sibling linears merged.
        parameters: of the graph.
        max_positions: rotary tables are made for that many.
    """

    def __init__(self, plan: Plan, graph: Graph, parameters: Parameters, pages: KvPages, max_positions: int) -> None:
        self._plan = plan
        self._nodes = graph.nodes
        self._parameters = parameters
        self._pages = pages
        self._max_positions = max_positions
        self._selected = _selected(graph)
        self._fusions = find_fusions(graph, parameters.is_quantised)
        self._inner = {
            reader: index for index, reader in self._fusions.joined.items() if reader not in self._fusions.gated
        }
        self._views: dict[int, Value] = {}
        self._rotary: dict[Rope, int] = {}
        self._tables: list[object] = []
        self._buffers = _Buffers(plan)
        self._lower()
        plan.finish()

    @property
    def arrays(self) -> list[object]:
        return [*self._pages.layers, *self._parameters.arrays, *self._tables]

    def _lower(self) -> None:
        ending = self._ending()
        for index, node in enumerate(self._nodes):
            if index in self._fusions.joined:
                continue  # computed where its reader stands
            if isinstance(node.op, Slice):
                self._views[index] = self._views[node.inputs[0]].columns(node.op.start, node.op.stop)
            elif index in self._fusions.gated:
                self._emit_gated(index)
            else:
                self._emit(index)
            for value in ending.get(index, []):
                if value in self._views:
                    self._buffers.free(self._views[value])

    def _ending(self) -> dict[int, list[int]]:
        """By node, the values whose buffers are free after it: no view of theirs is read any more.

        A joined node reads where its reader stands.
        """
        owner: dict[int, int] = {}
        for index, node in enumerate(self._nodes):
            owner[index] = owner[node.inputs[0]] if isinstance(node.op, Slice) else index
        last: dict[int, int] = {}
        for index, node in enumerate(self._nodes):
            for source in node.inputs:
                last[owner[source]] = max(last.get(owner[source], 0), self._fusions.joined.get(index, index))
        ending: dict[int, list[int]] = {}
        for value, index in last.items():
            ending.setdefault(index, []).append(value)
        return ending

    def _emit(self, index: int) -> None:
        """Add a node's operations, and those of the node that is computed with it."""
        plan = self._plan
        place = self._nodes[index]
        out = self._views[index] = self._buffers.take(place.width, selected=self._selected[index])
        node, second = place, None  # what a linear adds to its result, or an activation multiplies its by
        if index in self._inner:
            node, second = self._nodes[self._inner[index]], self._views[other_input(place, self._inner[index])]
        inputs = [self._views.get(source) for source in node.inputs]
        match node.op, inputs:
            case Linear() as op, _:
                self._emit_linear(op, node.inputs[0], out, second)
            case Embedding(index=by) as op, []:
                plan.embed(out=out, weight=self._parameters.table(op), by_position=by == "position")
            case RMSNorm(weight=weight, eps=eps, offset=offset), [Value() as x]:
                plan.rms_norm(x, out=out, weight=self._parameters.floats(weight, offset=offset), epsilon=eps)
            case LayerNorm(weight=weight, bias=bias, eps=eps), [Value() as x]:
                floats = self._parameters.floats
                plan.layer_norm(x, out=out, weight=floats(weight), bias=floats(bias), epsilon=eps)
            case Rope() as op, [Value() as x]:
                plan.rope(x, out=out, rotary=self._rotary_table(op))
            case Attention() as op, [Value() as queries, Value() as keys, Value() as values]:
                layer = self._layer(op)
                plan.store_kv(keys=keys, values=values, layer=layer)
                plan.attention(queries, out=out, layer=layer, reader=self._reader(index))
            case Activation(function=function), [Value() as x]:
                plan.activation(x, out=out, function=Function[function], gate=second)
            case Add(), [Value() as x, Value() as y]:
                plan.add(x, y, out=out)
            case Multiply(), [Value() as x, Value() as y]:
                plan.multiply(x, y, out=out)
            case Scale(factor=factor), [Value() as x]:
                plan.scale(x, out=out, factor=factor)
            case SelectRows(), [Value() as x]:
                plan.select_rows(x, out=out)
            case other, _:
                raise TypeError(f"no native operation for {type(other).__name__}")

    def _emit_linear(self, op: Linear, source: int, out: Value, residual: Value | None) -> None:
        weight = self._parameters.linear(op)
        if not self._parameters.is_quantised(op):
            self._plan.linear_float(self._views[source], out=out, weight=weight, residual=residual)
            return
        if source not in self._fusions.readers:  # else it was quantised where it was computed
            self._plan.quantise(self._views[source], reader=weight)
        gated = source in self._fusions.gated
        self._plan.linear_quantised(out=out, weight=weight, residual=residual, gated=gated)

    def _emit_gated(self, product: int) -> None:
        """Add the operations of a gated linear, whose result is left for the linear that reads it."""
        gated = self._fusions.gated[product]
        linear = self._nodes[gated.linear]
        reader = self._reader(product)
        assert isinstance(linear.op, Linear)
        assert reader is not None
        weight = self._parameters.linear(linear.op)
        self._plan.quantise(self._views[linear.inputs[0]], reader=weight)
        self._plan.linear_gated(
            weight=weight, function=Function[gated.function], reader=reader, selected=self._selected[product]
        )

    def _reader(self, index: int) -> int | None:
        """The weight of the linear that a node's result is quantised for."""
        if index not in self._fusions.readers:
            return None
        op = self._nodes[self._fusions.readers[index]].op
        assert isinstance(op, Linear)
        return self._parameters.linear(op)

    def _layer(self, op: Attention) -> int:
        return self._plan.add_layer(
            heads=op.num_heads,
            kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            page_size=self._pages.size,
            window=op.window or 0,
            scale=op.scale,
            kv_type=self._pages.type,
            pages=self._pages.layers[op.layer],
        )

    def _rotary_table(self, op: Rope) -> int:
        if op not in self._rotary:
            positions = np.arange(self._max_positions, dtype=np.int64)
            cosine, sine = (np.ascontiguousarray(table) for table in Rotations().at(op, positions))
            self._tables += [cosine, sine]
            self._rotary[op] = self._plan.add_rotary(cosine=cosine, sine=sine)
        return self._rotary[op]


class _Buffers:
    """Buffers for the values of a plan, used again once nothing reads them any more.

    Each is as wide as whole tiles, which linears write.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kinds: dict[int, tuple[int, bool]] = {}
        self._free: dict[tuple[int, bool], list[int]] = {}

    def take(self, width: int, *, selected: bool) -> Value:
        """A value of that width. `selected`: its rows are those of the logits."""
        kind = (-(-width // self._plan.tile) * self._plan.tile, selected)
        free = self._free.setdefault(kind, [])
        buffer = free.pop() if free else self._plan.add_buffer(kind[0], selected=selected)
        self._kinds[buffer] = kind
        return Value(buffer, width)

    def free(self, value: Value) -> None:
        self._free[self._kinds[value.buffer]].append(value.buffer)


def _selected(graph: Graph) -> list[bool]:
    """For every node whether its rows are those of the logits."""
    selected: list[bool] = []
    for node in graph.nodes:
        selected.append(isinstance(node.op, SelectRows) or any(selected[source] for source in node.inputs))
    return selected
