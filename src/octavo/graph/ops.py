"""The vocabulary of model graphs.

A graph computes on token-major matrices `[rows, width]`: one row for every token of a step, all sequences concatenated,
no padding; after `SelectRows` one row for every row of logits. An op says what is computed, never how or where.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight: its full name in the checkpoint, and the shape it must have there."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """What a node computes from its inputs, x (and y) `[rows, width]`."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Embedding(Op):
    """`table[i]`, where i is each token's id or its position; no input. The table is [entries, width]."""

    table: Parameter
    index: Literal["token", "position"]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (self.table,)


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """`x @ W.T + b`, W being all weights [out, width of x] one below the other.

    There is one weight unless sibling linears were merged. There are as many biases [out] as weights, or none.
    """

    weights: tuple[Parameter, ...]
    biases: tuple[Parameter, ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.weights + self.biases


@dataclass(frozen=True, slots=True)
class RMSNorm(Op):
    """`x / sqrt(mean(x²) + eps) * (offset + weight)`, taken over each run of `len(weight)` features.

    A weight as long as the row is the usual norm; one as long as a head normalises every head by itself.
    Zhang and Sennrich, "Root mean square layer normalization", 2019.
    """

    weight: Parameter
    eps: float
    offset: float

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (self.weight,)


@dataclass(frozen=True, slots=True)
class LayerNorm(Op):
    """`(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, the variance being the biased one."""

    weight: Parameter
    bias: Parameter
    eps: float

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """Rotary position embedding of every head of x: Su et al., "RoFormer", 2021.

    Features i and i + head_dim / 2 of a head are turned by the angle `position * frequencies[i]` (in float32, as models
    are trained) and multiplied by `magnitude`. There are head_dim / 2 frequencies, in radians per position.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0

    @property
    def head_dim(self) -> int:
        return 2 * len(self.frequencies)


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """Causal attention over the sequence: queries [rows, num_heads * head_dim], then keys and values
    [rows, num_kv_heads * head_dim], which join the KV cache of `layer`.

    `softmax(q @ k.T * scale) @ v` for each head; query head h uses KV head `h // (num_heads / num_kv_heads)`.
    With a window, a token sees itself and the `window - 1` tokens before it.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None


ActivationFunction = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Activation(Op):
    """silu `x / (1 + exp(-x))`; gelu `x * Φ(x)`, Φ being the normal distribution; gelu_tanh its usual approximation,
    `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 x³)))`."""

    function: ActivationFunction


@dataclass(frozen=True, slots=True)
class Add(Op):
    """`x + y`."""


@dataclass(frozen=True, slots=True)
class Multiply(Op):
    """`x * y`, element by element."""


@dataclass(frozen=True, slots=True)
class Scale(Op):
    """`x * factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """`x[:, start:stop]`."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SelectRows(Op):
    """The rows of x whose logits are wanted in this step."""


@dataclass(frozen=True, slots=True)
class Node:
    """One op in its place.

    Attributes:
        op: what is computed.
        inputs: the nodes, by index, whose results it takes.
        width: features of its result.
        name: for people: the scope and the kind of op, or the module whose weights it uses.
    """

    op: Op
    inputs: tuple[int, ...]
    width: int
    name: str


@dataclass(frozen=True)
class Graph:
    """A model: nodes in an order in which they can run. The last one's result is the logits."""

    nodes: tuple[Node, ...]

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, each once, in the order of first use."""
        return {parameter.name: parameter.shape for node in self.nodes for parameter in node.op.parameters}

    def attention_layers(self) -> tuple[Attention, ...]:
        """The attention ops by layer: what sizes the KV cache."""
        found = [node.op for node in self.nodes if isinstance(node.op, Attention)]
        return tuple(sorted(found, key=lambda op: op.layer))
