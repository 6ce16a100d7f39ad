"""The parameters of a graph, packed for the native kernels and added to a plan."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from octavo.backends.common.checks import check_weights, finite
from octavo.backends.cpu._native import Plan, WeightKind
from octavo.backends.cpu.memory import Slabs
from octavo.backends.cpu.quantization import bits_by_weight
from octavo.backends.cpu.repack import PackedWeight, pack
from octavo.backends.protocol import Float32
from octavo.graph.ops import Activation, Attention, Embedding, Graph, Linear, Multiply, Node, Parameter
from octavo.weights.tensor import Tensor

Names = tuple[str, ...]


class Parameters:
    """Gives nodes the parameters that a plan knows them by. What the plan points to is kept in `arrays`.

    Every matrix is repacked at once; it is added to the plan when a node first asks for it.

    Args:
        graph: with sibling linears merged.
        tensors: the weights by name.
        quantization: of weights that are not quantised yet, "q8", "q4" or None.
        progress: called with (weights packed, weights in all).

    Raises:
        CheckpointError: weights are missing, have other shapes, or are not finite.
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        quantization: str | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        check_weights(graph, tensors)
        self.arrays: list[object] = []
        self._plan = plan
        self._tensors = tensors
        self._precise = _precise(graph)
        self._packed = self._pack(graph, bits_by_weight(graph, quantization), progress)
        self._linears: dict[tuple[Names, Names], int] = {}

    def is_quantised(self, op: Linear) -> bool:
        """Whether a linear's weights are integers, and so its input must be."""
        return self._packed[_names(op.weights)].is_quantised

    def linear(self, op: Linear) -> int:
        """The plan's number of a linear's weights, with its biases."""
        names = _names(op.weights)
        key = (names, _names(op.biases))
        if key not in self._linears:
            weight = self._packed[names]
            bias = self.floats(*op.biases, padded=weight.out) if op.biases else None
            precise = names in self._precise and weight.kind is WeightKind.U4
            self._linears[key] = self._add(weight, bias, precise=precise)
        return self._linears[key]

    def table(self, op: Embedding) -> int:
        """The plan's number of an embedding's table."""
        return self._add(self._packed[op.table.name,])

    def floats(self, *parameters: Parameter, padded: int = 0, offset: float = 0.0) -> Float32:
        """Small parameters as one float32 array, zeros after its end up to `padded`."""
        parts = [finite(self._tensors[each.name]).to_float32().reshape(-1) for each in parameters]
        array = np.concatenate(parts) + np.float32(offset)
        array = np.pad(array, (0, max(padded - len(array), 0)))
        self.arrays.append(array)
        return array

    def _pack(
        self, graph: Graph, bits: Mapping[str, int | None], progress: Callable[[int, int], None] | None
    ) -> dict[Names, PackedWeight]:
        """Repack every matrix once, the largest first, on two threads (numpy releases the GIL)."""
        matrices = {names for node in graph.nodes if (names := _matrix(node)) is not None}
        shapes = graph.parameters()
        units = sorted(matrices, key=lambda names: -sum(shapes[name][0] * shapes[name][1] for name in names))
        packed = {}
        memory = Slabs()

        def pack_unit(names: Names) -> PackedWeight:
            return pack([finite(self._tensors[name]) for name in names], self._plan.tile, memory, bits[names[0]])

        with ThreadPoolExecutor(2) as pool:
            results = pool.map(pack_unit, units)
            for names, weight in zip(units, results, strict=True):
                packed[names] = weight
                if progress is not None:
                    progress(len(packed), len(units))
        return packed

    def _add(self, weight: PackedWeight, bias: Float32 | None = None, *, precise: bool = False) -> int:
        self.arrays.append(weight)
        return self._plan.add_weight(
            kind=weight.kind,
            group=weight.group,
            half_scales=weight.half_scales,
            minima=weight.minima,
            precise=precise,
            out=weight.out,
            in_=weight.in_,
            data=weight.data,
            bias=bias,
        )


def _names(parameters: tuple[Parameter, ...]) -> Names:
    return tuple(parameter.name for parameter in parameters)


def _matrix(node: Node) -> Names | None:
    match node.op:
        case Linear(weights=weights):
            return _names(weights)
        case Embedding(table=table):
            return (table.name,)
    return None


def _precise(graph: Graph) -> set[Names]:
    """The weights of linears that take inputs of 16 bits, where those of 8 would change a model's predictions most.

    What becomes queries, keys and values: softmax multiplies their errors. What leaves an activation function: beside a
    row's few large values the others would be lost. All after the last attention: nothing comes after them that would
    average their errors away.
    """
    nodes = graph.nodes
    last = max((index for index, node in enumerate(nodes) if isinstance(node.op, Attention)), default=len(nodes))
    found = set()
    for index, node in enumerate(nodes):
        if isinstance(node.op, Attention):
            for source in node.inputs:
                while not isinstance(nodes[source].op, Linear) and len(nodes[source].inputs) == 1:
                    (source,) = nodes[source].inputs
                match nodes[source].op:
                    case Linear(weights=weights):
                        found.add(_names(weights))
        elif isinstance(node.op, Linear) and (index > last or _is_activated(nodes, node.inputs[0])):
            found.add(_names(node.op.weights))
    return found


def _is_activated(nodes: tuple[Node, ...], index: int) -> bool:
    """Whether a value is what an activation function came to, or a product with that."""
    node = nodes[index]
    sources = node.inputs if isinstance(node.op, Multiply) else (index,)
    return any(isinstance(nodes[source].op, Activation) for source in sources)
