"""What a model of sequences is told of them: control tensors, under the names that its configuration has for them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.lanes import SequenceId, Turn
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START


class ControlKind(StrEnum):
    """By the names of Triton's `ModelSequenceBatching.Control.Kind`."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control tensor. Attributes: values: for false and true; that of CORRID is the sequence's id."""

    name: str
    kind: ControlKind
    datatype: Datatype
    values: tuple[float, float] = (0, 1)


class ControlTensor(NamedTuple):
    """One as a request has it."""

    name: str
    datatype: Datatype
    array: NDArray[Any]


class SequenceInputs:
    """Makes the control tensors of requests.

    Args:
        batched: whether tensors have a batch dimension.
    """

    def __init__(self, controls: Sequence[Control], *, batched: bool) -> None:
        self._shape = (1, 1) if batched else (1,)
        self._flags = [each for each in controls if each.kind is not ControlKind.CORRID]
        self._id = next((each for each in controls if each.kind is ControlKind.CORRID), None)
        self._known = {flags: self._tensors(flags, ready=True) for flags in range(4)}
        self._not_ready = self._tensors(0, ready=False)

    def of(self, turn: Turn[Any] | None) -> list[ControlTensor]:
        """Those of a request; or of a place in a batch where there is none, without one. They may be written to."""
        kept = self._not_ready if turn is None else self._known[turn.flags]
        tensors = [ControlTensor(each.name, each.datatype, each.array.copy()) for each in kept]
        if self._id is not None:
            course = None if turn is None else turn.of
            tensors.append(self._tensor(self._id, 0 if course is None else course.public_id))
        return tensors

    def _tensors(self, flags: int, *, ready: bool) -> list[ControlTensor]:
        said = {
            ControlKind.START: bool(flags & SEQUENCE_START),
            ControlKind.END: bool(flags & SEQUENCE_END),
            ControlKind.READY: ready,
        }
        return [
            ControlTensor(
                each.name, each.datatype, np.full(self._shape, each.values[said[each.kind]], each.datatype.dtype)
            )
            for each in self._flags
        ]

    def _tensor(self, control: Control, sequence: SequenceId) -> ControlTensor:
        datatype = control.datatype
        if datatype is Datatype.BYTES:
            text = "" if sequence == 0 else str(sequence)
            array = np.full(self._shape, text.encode(), object)
        else:
            number = struct.pack("<Q", _number(sequence))  # of which smaller types have the lower bytes
            array = np.frombuffer(number, datatype.dtype, 1).reshape(self._shape).copy()
        return ControlTensor(control.name, datatype, array)


def _number(sequence: SequenceId) -> int:
    """The number that stands for a sequence: another one for each name."""
    if isinstance(sequence, int):
        return sequence
    return int.from_bytes(blake2b(sequence.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
