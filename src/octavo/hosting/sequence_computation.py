"""A runtime's model as a computation of sequences: it is told where each request stands in its sequence, and what it
said itself with the one before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.computation import Answer, Task
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.lanes import Course, Turn
from octavo.hosting.runtime_computation import RuntimeComputation
from octavo.hosting.sequence_inputs import SequenceInputs
from octavo.hosting.tensors import Place, from_bytes
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START, Call, Infer


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A tensor that a model gives with each request, and takes with the next one of the same sequence.

    Attributes:
        input, output: what it is called. initial: what the first request takes, with a batch dimension if there is one.
    """

    input: str
    output: str
    datatype: Datatype
    initial: NDArray[Any]


class SequenceComputation:
    """A model of sequences.

    Args:
        inner: computes rows. Its inputs are those of requests, the control tensors and states; its outputs have states.
        usual: the outputs of a request that names none.
    """

    def __init__(
        self, inner: RuntimeComputation, inputs: SequenceInputs, states: Sequence[State], usual: Sequence[str]
    ) -> None:
        self._inner = inner
        self._inputs = inputs
        self._states = states
        self._usual = tuple(usual)
        self._hidden = tuple(each.output for each in states)

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """As `Computation.read`."""
        return self._inner.read(message, data)

    def stream(self, task: Task) -> Iterator[Answer]:
        """As `Computation.stream`."""
        return self._inner.stream(task)

    def compute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """As `Computation.compute`. Places of the batch that no request has get one that does not count."""
        rows: list[Task] = []
        places = []
        for task in tasks:
            turn: Turn[Any] = task.turn or _ALONE
            rows += [self._empty(task) for _ in range(len(rows), task.place)]
            places.append(len(rows))
            rows.append(self._row(task, turn))
        answers = self._compute(rows)
        return [self._given(task, answers[place]) for task, place in zip(tasks, places, strict=True)]

    def _row(self, task: Task, turn: Turn[Any]) -> Task:
        content: dict[str, NDArray[Any]] = dict(task.content)
        content.update((each.name, each.array) for each in self._inputs.of(turn))
        course = turn.of
        if course is None or turn.flags & SEQUENCE_START:
            kept: Mapping[str, NDArray[Any]] = {}
        else:
            kept = course.state
        content.update((each.input, kept.get(each.output, each.initial)) for each in self._states)
        wanted = task.outputs or self._usual
        return replace(task, content=content, outputs=(*wanted, *(each for each in self._hidden if each not in wanted)))

    def _empty(self, task: Task) -> Task:
        """A row of nothing, with the shapes of another one."""
        content = {name: np.zeros_like(array) for name, array in task.content.items()}
        content.update((each.name, each.array) for each in self._inputs.of(None))
        content.update((each.input, each.initial) for each in self._states)
        return replace(task, content=content, outputs=(*self._usual, *self._hidden))

    def _compute(self, rows: list[Task]) -> list[Answer | InferenceError]:
        """Compute rows, together as far as their states have the same shapes."""
        kinds: dict[object, list[int]] = {}
        for at, row in enumerate(rows):
            kinds.setdefault(tuple(row.content[each.input].shape for each in self._states), []).append(at)
        answers: dict[int, Answer | InferenceError] = {}
        for group in kinds.values():
            answers.update(zip(group, self._inner.compute([rows[at] for at in group]), strict=True))
        return [answers[at] for at in range(len(rows))]

    def _given(self, task: Task, answer: Answer | InferenceError) -> Answer | InferenceError:
        """An answer as its client gets it. What else is in it is kept for the next request."""
        if isinstance(answer, InferenceError) or not self._states:
            return answer
        course: Course[Any] | None = task.turn.of if task.turn is not None else None
        wanted = task.outputs or self._usual
        parts, buffers = [], []
        for part, buffer in zip(answer.parts, answer.buffers, strict=True):
            if part.name in self._hidden and course is not None:
                own = memoryview(bytes(buffer))
                course.state[part.name] = from_bytes(part.datatype, part.shape, own, Place(part.name, "")).array
            if part.name in wanted:
                parts.append(part)
                buffers.append(buffer)
        return Answer(buffers, tuple(parts), parameters=answer.parameters)


_ALONE: Turn[None] = Turn(None, 1, None, 0.0, 0.0, 1, 0, flags=SEQUENCE_START | SEQUENCE_END)
"""For a sample that is computed before there are any sequences."""
