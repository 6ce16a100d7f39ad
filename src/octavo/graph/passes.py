"""Graphs into equivalent graphs that run faster."""

from collections import defaultdict
from collections.abc import Callable, Hashable

from octavo.graph.ops import Graph, Linear, Node, Op, Slice


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
