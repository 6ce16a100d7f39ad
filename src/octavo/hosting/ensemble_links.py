"""Tensors that go on just as they are: from a request, or from a step, to a step that takes all of them and no others.

They are not taken apart. Those of most requests differ from the ones before in their bytes alone: what a model was once
asked for is kept, and not found out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from octavo.hosting.inference import Outline
from octavo.hosting.model_client import ModelClient
from octavo.hosting.tensors import Buffer, Encoded
from octavo.hosting.wire import Part, tensors_of

KEPT = 256
"""Sorts of tensors that are remembered of a step, and of a link."""

Given = tuple[tuple[Part, ...], Sequence[Buffer]]
"""Tensors, and the bytes of all of them one behind the other, in any number of pieces."""


class Known:
    """What a model was asked for, by the tensors that it was for."""

    def __init__(self) -> None:
        self._outlines: dict[tuple[Part, ...], Outline] = {}

    def find(self, parts: tuple[Part, ...], client: ModelClient) -> Outline | None:
        """What it is to be asked for such tensors, if that was found out when the model was the same."""
        outline = self._outlines.get(parts)
        return outline if outline is not None and outline.info is client.info else None

    def learn(self, parts: tuple[Part, ...], outline: Outline) -> None:
        """Such tensors were found to fit."""
        if len(self._outlines) >= KEPT:
            self._outlines.clear()
        self._outlines[parts] = outline


@dataclass(frozen=True, slots=True)
class Link:
    """Attributes: step: that takes the tensors. names: its inputs, by what they are called where they come from."""

    step: int
    names: Mapping[str, str]
    known: Known = field(default_factory=Known)

    def takes(self, parts: Sequence[Part]) -> bool:
        """Whether these are the tensors: a model may leave some out, and requests may."""
        return len(parts) == len(self.names) and all(part.name in self.names for part in parts)

    def inputs(self, given: Given) -> dict[str, Encoded]:
        """The tensors, as the step calls them."""
        return {self.names[name]: tensor for name, tensor in tensors_in(given).items()}


def tensors_in(given: Given) -> dict[str, Encoded]:
    """The tensors one by one, whose bytes may come in other pieces than they are."""
    parts, pieces = given
    if len(pieces) == len(parts) and all(len(each) == part.size for part, each in zip(parts, pieces, strict=True)):
        found = zip(parts, pieces, strict=True)
        return {part.name: Encoded(part.datatype, part.shape, data) for part, data in found}
    return tensors_of(parts, memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
