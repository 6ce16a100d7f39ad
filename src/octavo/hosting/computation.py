"""A loaded model, as the process that serves it uses it."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.hosting.errors import InferenceError
from octavo.hosting.lanes import Turn
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Call, Infer, Part


@dataclass(slots=True)
class Task:
    """A request that was read, and can be computed.

    Attributes:
        content: what the computation made of it. items: it counts for so many in a batch.
        kind: those of other kinds are not computed with it.
        outputs: that are wanted; none for all. body: whether the answer is one.
        turn: its place in a sequence, of models of sequences. place: in a batch of these.
    """

    content: Any
    items: int = 1
    kind: Hashable = None
    outputs: Sequence[str] = ()
    body: bool = False
    turn: Turn[Any] | None = None
    place: int = 0


@dataclass(slots=True)
class Answer:
    """A result as it is sent: tensors with their bytes, or a body of a media type.

    Attributes:
        parameters: what the model says beside it.
    """

    buffers: Sequence[Buffer]
    parts: tuple[Part, ...] = ()
    media_type: str = ""
    parameters: dict[str, bool | int | float | str] | None = None


class Computation(Protocol):
    """What a process serves. Nothing here raises anything but InferenceError, whatever the model does."""

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """Make a task of a request. Raises InferenceError: it is to blame."""
        ...

    def compute(self, tasks: Sequence[Task]) -> Sequence[Answer | InferenceError]:
        """Compute a batch: for each task its answer, or why there is none."""
        ...

    def stream(self, task: Task) -> Iterator[Answer]:
        """The answers to one, of a model that streams. Raises InferenceError."""
        ...
