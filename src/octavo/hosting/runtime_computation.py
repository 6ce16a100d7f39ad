"""A runtime's model as a computation: the tensors of several requests become one, and its results theirs again."""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.computation import Answer, Task
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import Runtime
from octavo.hosting.tensors import Encoded, Place, Tensor, encoded_rows
from octavo.hosting.wire import Call, Infer, arrays_of, parts_of

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


class RuntimeComputation:
    """A model that a runtime has loaded.

    Args:
        batched: whether the first dimension is that of the batch.
        merges: whether requests may be computed together.
    """

    def __init__(self, runtime: Runtime, name: str, *, batched: bool, merges: bool = True) -> None:
        self._runtime = runtime
        self._name = name
        self._batched = batched
        self._merges = merges
        self._places = {spec.name: Place(spec.name, name) for spec in runtime.inputs}
        self._ragged = {spec.name for spec in runtime.inputs if spec.ragged}
        self._outputs = {spec.name: spec for spec in runtime.outputs}
        self._usual = tuple(spec.name for spec in runtime.outputs if not spec.optional)

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """Make a task of a request. Raises InferenceError: it is to blame."""
        assert isinstance(message, Infer), "frontends know that it takes no bodies"
        arrays = arrays_of(message.parts, data, self._places)
        items = len(next(iter(arrays.values()))) if self._batched and arrays else 1
        return Task(arrays, items, self._kind(arrays) if self._merges else object(), message.outputs)

    def _kind(self, arrays: Arrays) -> Hashable:
        """What is computed together has the same inputs, of the same types and of the same sizes but for the batch."""
        return tuple(
            (name, array.dtype.str, () if name in self._ragged else array.shape[1:])
            for name, array in sorted(arrays.items())
        )

    def compute(self, tasks: Sequence[Task]) -> Sequence[Answer | InferenceError]:
        """Compute a batch. If it fails as a whole, each request is computed alone: one may be to blame."""
        try:
            return self._compute(tasks)
        except InferenceError as error:
            if len(tasks) == 1:
                return [error]
        except Exception as error:  # whatever a runtime raises
            if len(tasks) == 1:
                log.error("%s failed", self._name, exc_info=error)
                return [InferenceError(f"{self._name} failed: {_one_line(error)}", Code.INTERNAL)]
            log.warning("%s failed on %d requests: %s; computing each alone", self._name, len(tasks), _one_line(error))
        return [answer for task in tasks for answer in self.compute([task])]

    def stream(self, task: Task) -> Iterator[Answer]:
        """None of them does."""
        raise AssertionError("a runtime gives one result")

    def _compute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        asked = {name for task in tasks for name in task.outputs or self._usual}
        wanted = tuple(name for name in self._outputs if name in asked)
        results = self._runtime.execute(self._joined(tasks), wanted)
        items = sum(task.items for task in tasks)
        if self._batched:
            for name in wanted:
                rows = results[name].shape[0] if results[name].ndim else 0
                if rows != items:
                    raise ValueError(f"the output '{name}' has {rows} rows for {items}")
        counts = [task.items for task in tasks]
        pieces = {name: self._pieces(name, results[name], counts) for name in wanted}
        answers: list[Answer | InferenceError] = []
        for at, task in enumerate(tasks):
            own = {name: pieces[name][at] for name in task.outputs or self._usual}
            answers.append(Answer([each.data for each in own.values()], parts_of(own)))
        return answers

    def _joined(self, tasks: Sequence[Task]) -> dict[str, NDArray[Any]]:
        if len(tasks) == 1:
            return dict(tasks[0].content)
        joined = {}
        for name in tasks[0].content:
            arrays = [task.content[name] for task in tasks]
            joined[name] = np.concatenate([each.ravel() for each in arrays] if name in self._ragged else arrays)
        return joined

    def _pieces(self, name: str, array: NDArray[Any], counts: Sequence[int]) -> list[Encoded]:
        """What each request gets of an output."""
        datatype = self._outputs[name].datatype or Datatype.of(array.dtype)
        return encoded_rows(datatype, array, counts) if self._batched else [Encoded.of(Tensor(datatype, array))]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}"
