"""What a step costs: floating-point operations and bytes moved, op by op.

The conventions are those of roofline models of language models. A multiply and an add are two operations; only linears
and attention count, the rest is less than a percent. Bytes are those of weights, each read once a step (of an
embedding only the rows looked up), and of keys and values; activations are taken to stay in caches. So the whole step
takes at least `max(flops / peak flops, bytes / bandwidth)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from octavo.graph.ops import Attention, Embedding, Graph, Linear, Node, Parameter, SelectRows


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one node of a graph costs in one step."""

    name: str
    flops: int
    bytes: int


def kv_bytes_per_token(graph: Graph, itemsize: int) -> int:
    """Bytes of keys and values that one token keeps in all layers, `itemsize` bytes an element."""
    return sum(_kv_width(op) * itemsize for op in graph.attention_layers())


def step_cost(
    graph: Graph,
    *,
    tokens: Sequence[int],
    contexts: Sequence[int],
    logit_rows: int,
    weight_bytes: Mapping[str, int] | None = None,
    kv_itemsize: int = 4,
) -> list[OpCost]:
    """The cost of every node, in the graph's order.

    Args:
        graph: the model.
        tokens: for each sequence, its tokens in this step: 1 when it decodes.
        contexts: for each sequence, its length after this step.
        logit_rows: rows of logits computed.
        weight_bytes: bytes of each weight by name as it is stored; None is float32.
        kv_itemsize: bytes of an element of the KV cache.
    """
    sizes = {name: 4 * prod(shape) for name, shape in graph.parameters().items()}
    sizes.update(weight_bytes or {})
    rows: list[int] = []
    for node in graph.nodes:
        if isinstance(node.op, SelectRows):
            rows.append(logit_rows)
        else:
            rows.append(rows[node.inputs[0]] if node.inputs else sum(tokens))
    return [
        _node_cost(node, count, tokens, contexts, sizes, kv_itemsize)
        for node, count in zip(graph.nodes, rows, strict=True)
    ]


def _node_cost(
    node: Node,
    rows: int,
    tokens: Sequence[int],
    contexts: Sequence[int],
    sizes: Mapping[str, int],
    kv_itemsize: int,
) -> OpCost:
    match node.op:
        case Embedding(table=table):
            return OpCost(node.name, 0, rows * (sizes[table.name] // table.shape[0]))
        case Linear() as op:
            multiplies = rows * sum(prod(weight.shape) for weight in op.weights)
            return OpCost(node.name, 2 * multiplies, _stored(op.parameters, sizes) if rows else 0)
        case Attention() as op:
            pairs = seen = 0
            for count, context in zip(tokens, contexts, strict=True):
                window = op.window or context
                pairs += sum(min(length, window) for length in range(context - count + 1, context + 1))
                seen += min(context, window + count - 1)
            # Two products, q·k and p·v, of two operations each; keys and values read once and written once.
            flops = 4 * op.num_heads * op.head_dim * pairs
            return OpCost(node.name, flops, (seen + rows) * _kv_width(op) * kv_itemsize)
        case other:
            return OpCost(node.name, 0, _stored(other.parameters, sizes) if rows else 0)


def _stored(parameters: tuple[Parameter, ...], sizes: Mapping[str, int]) -> int:
    return sum(sizes[parameter.name] for parameter in parameters)


def _kv_width(op: Attention) -> int:
    return 2 * op.num_kv_heads * op.head_dim
