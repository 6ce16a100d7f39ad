"""Building a graph: one method per op, arithmetic on values, names relative to a scope."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from octavo.graph.ops import (
    Activation,
    ActivationFunction,
    Add,
    Attention,
    Embedding,
    Graph,
    LayerNorm,
    Linear,
    Multiply,
    Node,
    Op,
    Parameter,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """The result of a node under construction: `[rows, width]`. It can be added, multiplied and scaled.

    Attributes:
        builder: where it lives.
        index: its node.
        width: features.
        selected: whether the rows are those of the logits, and no longer those of the tokens.
    """

    builder: "GraphBuilder" = field(repr=False)
    index: int
    width: int
    selected: bool

    def __add__(self, other: "Value") -> "Value":
        return self.builder.add(self, other)

    def __mul__(self, other: "Value | float") -> "Value":
        if isinstance(other, Value):
            return self.builder.multiply(self, other)
        return self.builder.scale(self, other)


class GraphBuilder:
    """Collects nodes in the order in which they are built.

    `name` arguments are module names as in the checkpoint, relative to the scope; ".weight" and ".bias" are appended.
    What does not fit together (widths, rows, a weight with two shapes) raises ValueError with the name of the place:
    that is a mistake in the model's function, or a config that its parser should have refused.
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._scopes: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._num_attention_layers = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names used inside with `name.`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def embedding(self, name: str, entries: int, width: int) -> Value:
        """The row of the table [entries, width] for each token's id."""
        return self._append(Embedding(self._parameter(name, "weight", entries, width), "token"), (), width, name)

    def position_embedding(self, name: str, entries: int, width: int) -> Value:
        """The row of the table [entries, width] for each token's position."""
        return self._append(Embedding(self._parameter(name, "weight", entries, width), "position"), (), width, name)

    def linear(self, x: Value, name: str, width: int, *, bias: bool = False) -> Value:
        """x [rows, in] times the transposed weight [width, in], plus a bias [width] if there is one."""
        weight = self._parameter(name, "weight", width, x.width)
        biases = (self._parameter(name, "bias", width),) if bias else ()
        return self._append(Linear((weight,), biases), (x,), width, name)

    def rms_norm(self, x: Value, name: str, eps: float, *, group: int | None = None, offset: float = 0.0) -> Value:
        """RMS norm over the row, or over every `group` features of it (a head); `offset` is added to the weight."""
        length = group or x.width
        self._expect(x.width % length == 0, name, f"groups of {length} do not divide a width of {x.width}")
        return self._append(RMSNorm(self._parameter(name, "weight", length), eps, offset), (x,), x.width, name)

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        """Layer norm over the row, with weight and bias."""
        weight, bias = self._parameter(name, "weight", x.width), self._parameter(name, "bias", x.width)
        return self._append(LayerNorm(weight, bias, eps), (x,), x.width, name)

    def rope(self, x: Value, rope: Rope) -> Value:
        """Turn every head of x by its position."""
        self._expect(x.width % rope.head_dim == 0, "rope", f"heads of {rope.head_dim} do not divide {x.width}")
        return self._append(rope, (x,), x.width, "rope")

    def attention(
        self,
        queries: Value,
        keys: Value,
        values: Value,
        *,
        layer: int,
        head_dim: int,
        scale: float | None = None,
        window: int | None = None,
    ) -> Value:
        """Causal attention with the KV cache of `layer`; `scale` is 1 / sqrt(head_dim) unless given."""
        self._expect(
            queries.width % head_dim == 0 and keys.width % head_dim == 0 and keys.width == values.width,
            "attention",
            f"widths {queries.width}, {keys.width}, {values.width} are not heads of {head_dim}",
        )
        num_heads, num_kv_heads = queries.width // head_dim, keys.width // head_dim
        self._expect(
            num_heads % num_kv_heads == 0, "attention", f"{num_kv_heads} KV heads do not divide {num_heads} heads"
        )
        self._expect(not queries.selected, "attention", "the rows are those of the logits")
        expected = self._num_attention_layers
        self._expect(layer == expected, "attention", f"layer {layer} where layer {expected} is due")
        self._num_attention_layers += 1
        scale = head_dim**-0.5 if scale is None else scale
        op = Attention(layer, num_heads, num_kv_heads, head_dim, scale, window)
        return self._append(op, (queries, keys, values), queries.width, "attention")

    def activation(self, x: Value, function: ActivationFunction) -> Value:
        """A nonlinear function of every element."""
        return self._append(Activation(function), (x,), x.width, function)

    def add(self, x: Value, y: Value) -> Value:
        self._expect_alike(x, y, "add")
        return self._append(Add(), (x, y), x.width, "add")

    def multiply(self, x: Value, y: Value) -> Value:
        self._expect_alike(x, y, "multiply")
        return self._append(Multiply(), (x, y), x.width, "multiply")

    def scale(self, x: Value, factor: float) -> Value:
        return self._append(Scale(factor), (x,), x.width, "scale")

    def split(self, x: Value, widths: Sequence[int]) -> list[Value]:
        """Cut every row into pieces of the given widths."""
        self._expect(sum(widths) == x.width, "split", f"widths {list(widths)} do not add up to {x.width}")
        stops = [sum(widths[: count + 1]) for count in range(len(widths))]
        return [
            self._append(Slice(stop - width, stop), (x,), width, "slice")
            for stop, width in zip(stops, widths, strict=True)
        ]

    def select_rows(self, x: Value) -> Value:
        """Keep the rows whose logits are wanted: most tokens of a prompt need none."""
        self._expect(not x.selected, "select_rows", "the rows are selected already")
        return self._append(SelectRows(), (x,), x.width, "select_rows", selected=True)

    def finish(self, logits: Value) -> Graph:
        """The graph whose result is `logits`, which must have been built last."""
        self._expect(logits.builder is self, "finish", "the value belongs to another graph")
        self._expect(logits.index == len(self._nodes) - 1, "finish", "the logits are not what was built last")
        self._expect(logits.selected, "finish", "the rows of the logits were never selected")
        return Graph(tuple(self._nodes))

    def _append(self, op: Op, inputs: tuple[Value, ...], width: int, name: str, *, selected: bool = False) -> Value:
        self._expect(width > 0, name, f"a width of {width}")
        for value in inputs:
            self._expect(value.builder is self, name, "an input belongs to another graph")
        self._nodes.append(Node(op, tuple(value.index for value in inputs), width, self._full(name)))
        return Value(self, len(self._nodes) - 1, width, selected or any(value.selected for value in inputs))

    def _parameter(self, name: str, kind: str, *shape: int) -> Parameter:
        parameter = Parameter(f"{self._full(name)}.{kind}", shape)
        known = self._shapes.setdefault(parameter.name, shape)
        self._expect(known == shape, name, f"{kind} has shape {known} in one place and {shape} in another")
        return parameter

    def _full(self, name: str) -> str:
        return ".".join([*self._scopes, name])

    def _expect_alike(self, x: Value, y: Value, name: str) -> None:
        self._expect(
            x.width == y.width and x.selected == y.selected,
            name,
            f"{x.width} features of {_rows(x)} and {y.width} of {_rows(y)}",
        )

    def _expect(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise ValueError(f"{self._full(name)}: {what}")


def _rows(value: Value) -> str:
    return "the logits' rows" if value.selected else "the tokens' rows"
