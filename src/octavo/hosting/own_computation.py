"""Somebody's own code as a computation: requests of tensors and of bodies become its arguments, its results theirs."""

from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.bodies import Bodies
from octavo.hosting.computation import Answer, Task
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.own import OwnModel
from octavo.hosting.signature import Signature, TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.hosting.values import OUTPUT, codec_of, fields_of, is_image, named_values, png, to_json
from octavo.hosting.wire import Call, Infer, parts_of, tensors_of

BINARY, JSON, IMAGE = "application/octet-stream", "application/json", "image/png"

Row = Mapping[str, Any]
"""What a request, or one of its items, has by the parameters' names."""


class OwnComputation:
    """A model of somebody's own.

    Attributes:
        inputs, outputs: as tensors. bodies: as JSON and forms.

    Raises:
        ConfigError: annotations that stand for no tensors.
    """

    def __init__(self, own: OwnModel, name: str) -> None:
        self._own = own
        self._name = name
        self._batched = bool(own.options.max_batch_size)
        self._inputs = {each.name: codec_of(each.type) for each in own.parameters.values()}
        self.inputs = tuple(
            codec.spec(name, optional=not own.parameters[name].required) for name, codec in self._inputs.items()
        )
        fields = fields_of(own.result)
        self._fields = None if fields is None else tuple(fields)
        self._outputs = {name: codec_of(each) for name, each in (fields or {OUTPUT: own.result}).items()}
        self.outputs: tuple[TensorSpec, ...] = tuple(codec.spec(name) for name, codec in self._outputs.items())
        self.bodies = Bodies(own.name, list(own.parameters.values()), own.result)

    @property
    def text(self) -> str:
        """The one parameter that must be given, if it is a text: a prompt."""
        required = [each for each in self._own.parameters.values() if each.required]
        return required[0].name if len(required) == 1 and required[0].type is str else ""

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """Make a task of a request. Raises InferenceError: it is to blame."""
        if isinstance(message, Call):
            row = self.bodies.read(message.media_type, bytes(data))
            return Task([row], kind=self._kind(row), body=True)
        rows = self._rows(tensors_of(message.parts, data))
        return Task(rows, items=len(rows), kind=self._kind(rows[0]), outputs=message.outputs)

    def _rows(self, tensors: Mapping[str, Encoded]) -> list[Row]:
        arrays = {name: each.decode(Place(name, self._name)).array for name, each in tensors.items()}
        if not self._batched:
            # As when they are stacked, code may change its arrays.
            return [
                {
                    name: self._value(name, each if each.flags.writeable else each.copy())
                    for name, each in arrays.items()
                }
            ]
        count = len(next(iter(arrays.values()))) if arrays else 1
        return [{name: self._value(name, array[at]) for name, array in arrays.items()} for at in range(count)]

    def _value(self, name: str, row: NDArray[Any]) -> Any:
        try:
            return self._inputs[name].to_value(row)
        except InferenceError as error:
            raise InferenceError(f"{Place(name, self._name)}: {error}", field=name) from None

    def _kind(self, row: Row) -> Hashable:
        """Arrays are stacked, and for that must have the same shape."""
        stacked = (each.name for each in self._own.parameters.values() if each.stacked)
        return tuple((name, np.shape(row[name])) for name in stacked if name in row)

    # --- computing ----------------------------------------------------------------------------------------------------

    def compute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """Compute a batch."""
        return self._answers(tasks, self._own.compute([row for task in tasks for row in task.content]))

    async def acompute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """Compute a batch in the running event loop."""
        return self._answers(tasks, await self._own.acompute([row for task in tasks for row in task.content]))

    def stream(self, task: Task) -> Iterator[Answer]:
        """The answers to one request, as they come. Raises InferenceError."""
        for result in self._own.stream(task.content[0]):
            yield self._checked(task, [result])

    async def astream(self, task: Task) -> AsyncIterator[Answer]:
        """The same in the running event loop."""
        async for result in self._own.astream(task.content[0]):
            yield self._checked(task, [result])

    def _checked(self, task: Task, results: Sequence[Any]) -> Answer:
        answer = self._answer(task, results)
        if isinstance(answer, InferenceError):
            raise answer
        return answer

    def _answers(self, tasks: Sequence[Task], results: Sequence[Any]) -> list[Answer | InferenceError]:
        answers, at = [], 0
        for task in tasks:
            answers.append(self._answer(task, results[at : at + task.items]))
            at += task.items
        return answers

    def _answer(self, task: Task, results: Sequence[Any]) -> Answer | InferenceError:
        failure = next((each for each in results if isinstance(each, InferenceError)), None)
        if failure is not None:
            return failure
        try:
            return _body(results[0]) if task.body else self._tensors(results, task.outputs)
        except (TypeError, ValueError, OverflowError) as error:
            return InferenceError(f"{self._name} failed: {error}", Code.INTERNAL)

    def _tensors(self, results: Sequence[Any], wanted: Sequence[str]) -> Answer:
        names = wanted or tuple(self._outputs)
        if self._fields is None:
            values = [{OUTPUT: each} for each in results]
        else:
            values = [named_values(each, names) for each in results]
        encoded = {}
        for name in names:
            codec = self._outputs[name]
            rows = [codec.to_row(each[name]) for each in values]
            encoded[name] = Encoded.of(Tensor(codec.datatype, _stacked(rows) if self._batched else rows[0]))
        return Answer([each.data for each in encoded.values()], parts_of(encoded))


def _stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len(rows) == 1:
        return rows[0][np.newaxis]
    if len({row.shape for row in rows}) > 1:
        raise ValueError("the results of one request have different shapes, and cannot be one tensor")
    return np.stack(rows)


def _body(value: Any) -> Answer:
    """A result as the body of a response: bytes and images as they are, everything else as JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return Answer([bytes(value)], media_type=BINARY)
    if is_image(type(value)):
        return Answer([png(value)], media_type=IMAGE)
    return Answer([to_json(value)], media_type=JSON)


def check_names(signature: Signature) -> None:
    """Raises ConfigError: two tensors of one name."""
    for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        names = [each.name for each in specs]
        if len(set(names)) != len(names):
            raise ConfigError(f"the model {signature.model} has two {kind} of one name: {', '.join(names)}")
