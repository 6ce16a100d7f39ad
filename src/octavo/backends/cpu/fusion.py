"""Which nodes of a graph the native plan computes in one operation."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from octavo.backends.cpu._native import BLOCK
from octavo.graph.ops import Activation, ActivationFunction, Add, Attention, Graph, Linear, Multiply, Node, Slice


@dataclass(frozen=True, slots=True)
class Gated:
    """The product of a linear's first half, through a function, and its second half: `function(gate) * up`."""

    linear: int
    function: ActivationFunction


@dataclass(slots=True)
class Fusions:
    """What is computed together.

    Attributes:
        joined: nodes that are computed where a later one stands, and that one.
        gated: by its product, an activation function that gates the other half of one linear.
        readers: nodes whose result is quantised at once for the linear that alone reads it, and that linear.
    """

    joined: dict[int, int] = field(default_factory=dict)
    gated: dict[int, Gated] = field(default_factory=dict)
    readers: dict[int, int] = field(default_factory=dict)


def find_fusions(graph: Graph, is_quantised: Callable[[Linear], bool]) -> Fusions:
    """Look for what the kernels have an operation for.

    A linear takes the sum that adds an earlier value to its result, an activation function the product of its result
    and an earlier value, two halves of one linear their gate. Attention and gated linears quantise what they come to.

    Args:
        is_quantised: whether a linear's weights are, and so its input must be.
    """
    search = _Search(graph, is_quantised)
    found = Fusions()
    for index, node in enumerate(graph.nodes):
        match node.op:
            case Attention(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim):
                # A KV head's query heads are computed by themselves: they must be whole blocks.
                if (
                    reader := search.quantising_reader(index)
                ) is not None and heads // kv_heads * head_dim % BLOCK == 0:
                    found.readers[index] = reader
            case Multiply():
                gated = search.gated(index)
                reader = search.quantising_reader(index)
                if gated is not None and reader is not None:
                    found.gated[index] = gated
                    found.readers[index] = reader
                    for inner in (gated.linear, *search.between(gated.linear, index)):
                        found.joined[inner] = index
    ends = set(found.joined.values())
    for index, node in enumerate(graph.nodes):
        match search.readers.get(index, []):
            case [reader] if index not in found.joined and reader not in ends:
                match node.op, graph.nodes[reader].op:
                    case Activation(), Multiply():
                        found.joined[index] = reader
                        ends.add(reader)
                    case Linear(), Add():
                        # A linear adds whole tiles: a slice, unlike a buffer, may end within one.
                        if not isinstance(graph.nodes[other_input(graph.nodes[reader], index)].op, Slice):
                            found.joined[index] = reader
                            ends.add(reader)
    return found


def other_input(node: Node, inner: int) -> int:
    """The other input of a sum or product."""
    first, second = node.inputs
    return second if first == inner else first


class _Search:
    def __init__(self, graph: Graph, is_quantised: Callable[[Linear], bool]) -> None:
        self._nodes = graph.nodes
        self._is_quantised = is_quantised
        self.readers: dict[int, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            for source in node.inputs:
                self.readers.setdefault(source, []).append(index)
        # Where what quantises, or is quantised for, is computed: where it stands, and at the latest.
        self._busy = sorted(
            {
                (place, index)
                for index, node in enumerate(graph.nodes)
                if isinstance(node.op, Linear | Attention | Multiply)
                for place in (index, self._latest(index))
            }
        )

    def quantising_reader(self, index: int) -> int | None:
        """The one node that reads this one, if it is a linear with quantised weights that comes next.

        What is quantised stands where the next linear's input will: no other one may come in between. A linear whose
        result is cut may be a gated one, which is computed later than it stands.
        """
        match self.readers.get(index, []):
            case [reader]:
                op = self._nodes[reader].op
                cut = any(isinstance(self._nodes[other].op, Slice) for other in self.readers.get(reader, []))
                if isinstance(op, Linear) and self._is_quantised(op) and not cut and self._comes_next(index, reader):
                    return reader
        return None

    def _comes_next(self, index: int, reader: int) -> bool:
        """Whether nothing that quantises, or that is quantised for, is computed between two nodes."""
        end = self._latest(reader)
        first = bisect_right(self._busy, index, key=itemgetter(0))
        # Of the first two that follow one may be the reader itself, where it is computed later than it stands.
        return all(place >= end or node == reader for place, node in self._busy[first : first + 2])

    def _latest(self, index: int) -> int:
        """Where a node is computed at the latest: a linear, where the sum stands that it is joined to."""
        match self.readers.get(index, []):
            case [reader] if isinstance(self._nodes[reader].op, Add):
                return reader
        return index

    def gated(self, product: int) -> Gated | None:
        """The linear and the function of a product, if nothing else reads what is between them."""
        for gate in self._nodes[product].inputs:
            match self._nodes[gate]:
                case Node(op=Activation(function=function), inputs=(first,)):
                    second = other_input(self._nodes[product], gate)
                    linear = self._halved(first, second)
                    alone = all(len(self.readers[inner]) == 1 for inner in (gate, first, second))
                    if linear is not None and alone and self._nodes[product].width % BLOCK == 0:
                        return Gated(linear, function)
        return None

    def _halved(self, first: int, second: int) -> int | None:
        """The quantised linear whose two halves these nodes are."""
        match self._nodes[first], self._nodes[second]:
            case (
                Node(op=Slice(start=0, stop=middle), inputs=(source,)),
                Node(op=Slice(start=start, stop=stop), inputs=(same,)),
            ) if source == same and middle == start and stop == 2 * middle == self._nodes[source].width:
                op = self._nodes[source].op
                if isinstance(op, Linear) and self._is_quantised(op) and len(self.readers[source]) == 2:
                    return source
        return None

    def between(self, linear: int, product: int) -> list[int]:
        """The nodes on the ways from a gated linear to its product."""
        halves = self.readers[linear]
        gate = next(node for node in self._nodes[product].inputs if isinstance(self._nodes[node].op, Activation))
        return [*halves, gate]
