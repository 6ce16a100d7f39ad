"""Which weights `quantization` turns into integers, and what they take then."""

from collections.abc import Mapping
from math import prod

from octavo.backends.cpu.repack import layout_of
from octavo.graph.ops import Embedding, Graph, Linear
from octavo.weights.tensor import Tensor

QUANTIZATIONS = {"q4": 4, "q8": 8}
"""Bits of a weight, by name."""


def bits_by_weight(graph: Graph, quantization: str | None) -> dict[str, int | None]:
    """For the weight of every linear and embedding to how many bits it is quantised, None for not at all.

    Tables of tokens and the matrix of the logits, often the same one, keep 8 bits, as in llama.cpp's 4-bit files:
    errors in the logits are not averaged away. Tables of positions stay as they are.
    """
    body = None if quantization is None else QUANTIZATIONS[quantization]
    ends = None if quantization is None else 8
    logits = next((node for node in reversed(graph.nodes) if isinstance(node.op, Linear)), None)
    bits: dict[str, int | None] = {}
    for node in graph.nodes:
        match node.op:
            case Linear(weights=weights):
                for weight in weights:
                    bits.setdefault(weight.name, ends if node is logits else body)
            case Embedding(table=table, index=index):
                bits[table.name] = ends if index == "token" else None
    return bits


def weight_bytes(graph: Graph, tensors: Mapping[str, Tensor], quantization: str | None) -> dict[str, int]:
    """Bytes of every weight as it is streamed; what the checkpoint lacks is left out."""
    bits = bits_by_weight(graph, quantization)
    return {
        name: layout_of(tensors[name].format, bits[name]).bytes_of(shape) if name in bits else 4 * prod(shape)
        for name, shape in graph.parameters().items()
        if name in tensors
    }
