"""Graphs into equivalent graphs that run faster."""

from collections import defaultdict
from collections.abc import Callable, Hashable

from octavo.graph.ops import (
    Activation,
    Add,
    Graph,
    LayerNorm,
    Linear,
    Multiply,
    Node,
    Op,
    RMSNorm,
    Scale,
    SelectRows,
    Slice,
)

_ROW_WISE = (Activation, Add, LayerNorm, Linear, Multiply, RMSNorm, Scale, Slice)
"""Operations whose result in a row depends on that row of their inputs alone, not on its token or position."""


def select_rows_early(graph: Graph) -> Graph:
    """Select the rows of the logits as early as can be: after the last attention nobody needs the others.

    A prompt's tokens but for the last then skip the last layer's MLP.
    """
    readers: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers[source].append(index)
    late: set[int] = set()  # nodes that only a selection reads, and others of these
    for index, node in reversed(list(enumerate(graph.nodes))):
        reading = [reader for reader in readers[index] if not isinstance(graph.nodes[reader].op, SelectRows)]
        if isinstance(node.op, _ROW_WISE) and readers[index] and late.issuperset(reading):
            late.add(index)

    nodes: list[Node] = []
    moved: dict[int, int] = {}  # index in the old graph -> index in the new one
    selections: dict[int, int] = {}

    def selected(source: int) -> int:
        """Where the selected rows of an old node are in the new graph."""
        if source in late:
            return moved[source]
        if source not in selections:
            width, name = graph.nodes[source].width, graph.nodes[source].name
            selections[source] = len(nodes)
            nodes.append(Node(SelectRows(), (moved[source],), width, f"{name}.rows"))
        return selections[source]

    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, SelectRows):
            moved[index] = selected(node.inputs[0])
            continue
        inputs = tuple(selected(source) if index in late else moved[source] for source in node.inputs)
        moved[index] = len(nodes)
        nodes.append(Node(node.op, inputs, node.width, node.name))
    return Graph(tuple(nodes))


def merge_sibling_linears(graph: Graph, kind: Callable[[str], Hashable] = lambda _: None) -> Graph:
    """Turn linears of the same input (q·k·v, gate·up) into one, followed by slices.

    One product of [rows, in] with [sum of outs, in] reads the input once and keeps the machine busier than several.
    Only linears that agree on having a bias, and on the `kind` of their weights by name, are merged. The merged one
    stands where the first of them stood.
    """
    families: dict[tuple[int, bool, Hashable], list[int]] = defaultdict(list)
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, Linear):
            families[node.inputs[0], bool(node.op.biases), kind(node.op.weights[0].name)].append(index)
    siblings = {index: family for family in families.values() if len(family) > 1 for index in family}

    nodes: list[Node] = []
    moved: dict[int, int] = {}  # index in the old graph -> index in the new one
    for index, node in enumerate(graph.nodes):
        if index in moved:
            continue
        inputs = tuple(moved[source] for source in node.inputs)
        family = siblings.get(index, [])
        if not family:
            moved[index] = len(nodes)
            nodes.append(Node(node.op, inputs, node.width, node.name))
            continue
        members = [graph.nodes[member] for member in family]
        merged = len(nodes)
        nodes.append(
            Node(
                _merge([member.op for member in members]),
                inputs,
                sum(member.width for member in members),
                " + ".join(member.name for member in members),
            )
        )
        start = 0
        for old, member in zip(family, members, strict=True):
            moved[old] = len(nodes)
            nodes.append(Node(Slice(start, start + member.width), (merged,), member.width, f"{member.name}.slice"))
            start += member.width
    return Graph(tuple(nodes))


def _merge(ops: list[Op]) -> Linear:
    linears = [op for op in ops if isinstance(op, Linear)]
    return Linear(
        tuple(weight for op in linears for weight in op.weights),
        tuple(bias for op in linears for bias in op.biases),
    )
