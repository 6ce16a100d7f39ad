"""Somebody's own code as a computation: requests of tensors and of bodies become its arguments, its results theirs."""

from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.bodies import Bodies
from octavo.hosting.computation import Answer, Task
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.own import OwnModel, Rows
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor, encoded_rows
from octavo.hosting.values import (
    OUTPUT,
    Codec,
    codec_of,
    fields_of,
    is_array,
    is_image,
    named_values,
    png,
    to_json,
    without_extras,
)
from octavo.hosting.wire import Call, Infer, arrays_of, parts_of

BINARY, JSON, IMAGE = "application/octet-stream", "application/json", "image/png"


class OwnComputation:
    """A model of somebody's own.

    Attributes:
        inputs, outputs: as tensors. unnamed: whether the only output is a result without a name.
        bodies: as JSON and forms.

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
        self.unnamed = fields is None
        self._outputs = {name: codec_of(each) for name, each in (fields or {OUTPUT: own.result}).items()}
        # Of results that are one array over the requests, and their rows arrays, too.
        whole = self._batched and fields is None and is_array(without_extras(own.result))
        self._whole = self._outputs[OUTPUT] if whole and self._outputs[OUTPUT].datatype is not Datatype.BYTES else None
        self._stacked = [each.name for each in own.parameters.values() if each.stacked]
        self._places = {each: Place(each, name) for each in own.parameters}
        self.outputs: tuple[TensorSpec, ...] = tuple(codec.spec(name) for name, codec in self._outputs.items())
        self.bodies = Bodies(own.name, list(own.parameters.values()), own.result)

    @property
    def text(self) -> str:
        """The one parameter that must be given, if it is a text: a prompt."""
        required = [each for each in self._own.parameters.values() if each.required]
        return required[0].name if len(required) == 1 and required[0].type is str else ""

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """Make a task of a request. Raises InferenceError: it is to blame, or the code that checks it."""
        try:
            return self._task(message, data)
        except InferenceError:
            raise
        except Exception as error:  # of validators of somebody's own, say
            raise self._own.failure(error) from error

    def _task(self, message: Infer | Call, data: memoryview) -> Task:
        if isinstance(message, Call):
            row = self.bodies.read(message.media_type, bytes(data))
            if not self._batched:
                return Task(row, body=True)
            columns = self._own.columns([row])
            return Task(columns, kind=self._kind(columns), body=True)
        arrays = arrays_of(message.parts, data, self._places)
        if not self._batched:
            row = {name: self._value(name, array) for name, array in arrays.items()}
            return Task(row, outputs=message.outputs)
        items = len(next(iter(arrays.values()))) if arrays else 1
        columns = self._columns(arrays, items)
        return Task(columns, items, self._kind(columns), message.outputs)

    def _columns(self, arrays: Mapping[str, NDArray[Any]], items: int) -> dict[str, Any]:
        """The values of all parameters over the items of a request."""
        columns: dict[str, Any] = {}
        for name, parameter in self._own.parameters.items():
            array = arrays.get(name)
            if parameter.stacked:
                columns[name] = array
            elif array is None:
                columns[name] = [parameter.default] * items
            else:
                columns[name] = [self._value(name, row) for row in array]
        return columns

    def _value(self, name: str, row: NDArray[Any]) -> Any:
        try:
            return self._inputs[name].to_value(row)
        except InferenceError as error:
            raise InferenceError(f"{self._places[name]}: {error}", field=name) from None

    def _kind(self, columns: Mapping[str, Any]) -> Hashable:
        """Arrays are stacked, and for that must have the same shape."""
        if not self._stacked:
            return None
        return tuple([None if (column := columns[name]) is None else column.shape[1:] for name in self._stacked])

    # --- computing ----------------------------------------------------------------------------------------------------

    def compute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """Compute a batch."""
        if not self._batched:
            return self._answers(tasks, self._own.compute([task.content for task in tasks]))
        return self._answers(tasks, self._own.compute_columns(*self._joined(tasks)))

    async def acompute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """Compute a batch in the running event loop."""
        if not self._batched:
            return self._answers(tasks, await self._own.acompute([task.content for task in tasks]))
        return self._answers(tasks, await self._own.acolumns(*self._joined(tasks)))

    def _joined(self, tasks: Sequence[Task]) -> tuple[dict[str, Any], int]:
        """The columns of several requests as those of one, which code may change."""
        columns: dict[str, Any] = {}
        for name, column in tasks[0].content.items():
            if isinstance(column, list):
                columns[name] = [value for task in tasks for value in task.content[name]]
            elif column is None:
                columns[name] = None
            elif len(tasks) > 1:
                columns[name] = np.concatenate([task.content[name] for task in tasks])
            else:
                columns[name] = column if column.flags.writeable else column.copy()
        return columns, sum([task.items for task in tasks])

    def stream(self, task: Task) -> Iterator[Answer]:
        """The answers to one request, as they come. Raises InferenceError."""
        for result in self._own.stream(task.content):
            yield self._checked(task, [result])

    async def astream(self, task: Task) -> AsyncIterator[Answer]:
        """The same in the running event loop."""
        async for result in self._own.astream(task.content):
            yield self._checked(task, [result])

    def _checked(self, task: Task, results: Rows) -> Answer:
        answer = self._answer(task, results)
        if isinstance(answer, InferenceError):
            raise answer
        return answer

    def _answers(self, tasks: Sequence[Task], results: Rows) -> list[Answer | InferenceError]:
        if self._whole is not None and isinstance(results, np.ndarray) and not any(task.body for task in tasks):
            return self._pieces(self._whole, tasks, results)
        answers, at = [], 0
        for task in tasks:
            answers.append(self._answer(task, results[at : at + task.items]))
            at += task.items
        return answers

    def _answer(self, task: Task, results: Rows) -> Answer | InferenceError:
        if isinstance(results, list):
            failure = next((each for each in results if isinstance(each, InferenceError)), None)
            if failure is not None:
                return failure
        try:
            return _body(results[0]) if task.body else self._tensors(results, task.outputs)
        except Exception as error:  # of whatever writes somebody's own values: an image in a mode that PNG lacks, say
            return self._unwritten(error)

    def _pieces(self, codec: Codec, tasks: Sequence[Task], results: NDArray[Any]) -> list[Answer | InferenceError]:
        """The answers that an array over the items of all has."""
        try:
            pieces = encoded_rows(codec.datatype, codec.to_row(results), [task.items for task in tasks])
        except Exception as error:
            return [self._unwritten(error) for _ in tasks]
        return [Answer([each.data], parts_of({OUTPUT: each})) for each in pieces]

    def _unwritten(self, error: Exception) -> InferenceError:
        """Why a result is no answer."""
        if isinstance(error, TypeError | ValueError | OverflowError):
            return InferenceError(f"{self._name} failed: {error}", Code.INTERNAL)
        return self._own.failure(error)

    def _tensors(self, results: Rows, wanted: Sequence[str]) -> Answer:
        names, encoded = wanted or tuple(self._outputs), {}
        values = [{OUTPUT: each} if self.unnamed else named_values(each, names) for each in results]
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
