"""What a model is asked and answers by code that asks it: values of Python as tensors, and back."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor, array_from_bytes
from octavo.hosting.values import IMAGE, JSON, codec_named, is_image, png
from octavo.hosting.wire import Interface, Part

_TAKES: dict[str, tuple[type, ...]] = {
    "bool": (bool, np.bool_),
    "int": (int, np.integer),
    "float": (float, int, np.floating, np.integer),
    "str": (str, bytes),
    "bytes": (bytes, bytearray, memoryview),
}
"""The types of Python that a value of each kind may have."""

_FITTING = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
"""By the kind of dtype that a model takes: those whose values can be of it."""


class StepValues:
    """How a model's tensors are values.

    Args:
        model: its name.
    """

    def __init__(self, model: str, interface: Interface) -> None:
        self.interface = interface
        self._model = model
        self._inputs = {spec.name: spec for spec in interface.inputs}
        self._outputs = {spec.name: spec for spec in interface.outputs}

    def encode(self, values: Mapping[str, Any], *, items: bool) -> dict[str, Encoded]:
        """The tensors of a request.

        Args:
            values: by the names of inputs; None leaves one out that need not be there.
            items: whether these are of several items, along the first dimension of arrays and else in lists.

        Raises:
            InferenceError: they are none that the model takes.
        """
        if items and not self.interface.batched:
            raise self._refusal("computes one item at a time: it has no batch dimension")
        for name in values:
            if name not in self._inputs:
                raise self._refusal(f"has no input '{name:.300}'; there are: {', '.join(self._inputs)}")
        found: dict[str, Encoded] = {}
        for name, spec in self._inputs.items():
            value = values.get(name)
            if value is None and not (name in values and spec.value == JSON):
                if not spec.optional:
                    raise self._refusal(f"lacks its input '{name}', which must be given")
                continue
            try:
                found[name] = Encoded.of(self._tensor(spec, value, items=items))
            except (TypeError, ValueError, OverflowError) as error:
                raise self._refusal(f"is given a wrong input '{name}': {error}") from error
        return found

    def _refusal(self, what: str) -> InferenceError:
        """It is the asking code that is to blame, and no client."""
        return InferenceError(f"the model '{self._model}' {what}", Code.INTERNAL)

    def _tensor(self, spec: TensorSpec, value: Any, *, items: bool) -> Tensor:
        if inspect.isawaitable(value):
            raise TypeError("it is still to be awaited")
        if not spec.value:
            tensor = _array(spec.datatype, value)
            if not tensor.array.ndim and spec.dims and not items:
                tensor.array = tensor.array.reshape((1,) * len(spec.dims))
            batch = self.interface.batched and not items
            return Tensor(tensor.datatype, tensor.array[np.newaxis]) if batch else tensor
        assert spec.datatype is not None, "what has a form in Python has a type"
        if not items:
            row = _row(spec, value)
            return Tensor(spec.datatype, row[np.newaxis] if self.interface.batched else row)
        if not isinstance(value, list | tuple | np.ndarray):
            raise TypeError(f"it is a {type(value).__name__}, and no list of values")
        rows = [_row(spec, each) for each in value]
        if len({row.shape for row in rows}) > 1:
            raise ValueError("its items differ in length, and cannot be one tensor")
        return Tensor(spec.datatype, np.stack(rows) if rows else np.empty((0, 1), spec.datatype.dtype))

    def decode(self, parts: Sequence[Part], data: memoryview, *, items: bool) -> Any:
        """What a model has answered: its outputs by name, or the value that its own code returned, if that has no name.

        Args:
            items: whether it was asked for several items.

        Raises:
            InferenceError: the bytes of a tensor are not those of its shape; a text is none.
        """
        found: dict[str, Any] = {}
        at = 0
        for part in parts:
            array = array_from_bytes(
                part.datatype, part.shape, data[at : at + part.size], Place(part.name, self._model)
            )
            at += part.size
            found[part.name] = self._value(self._outputs.get(part.name), array, items=items)
        return next(iter(found.values())) if self.interface.unnamed and len(found) == 1 else found

    def _value(self, spec: TensorSpec | None, array: NDArray[Any], *, items: bool) -> Any:
        batched = self.interface.batched
        if spec is None or not spec.value:
            if not array.flags.writeable:
                array = array.copy()  # it is the code's own
            return array[0] if batched and not items and array.shape[:1] == (1,) else array
        to_value = codec_named(spec.value).to_value
        if not batched:
            return to_value(array)
        return [to_value(row) for row in array] if items else to_value(array[0])


def _array(datatype: Datatype | None, value: Any) -> Tensor:
    """A tensor of whatever numpy makes an array of. Raises TypeError, ValueError: it has other values."""
    if datatype is Datatype.BYTES:
        return Tensor(datatype, _elements(value))
    array = np.asarray(value)
    if datatype is None and array.dtype.kind in "OUS":
        return Tensor(Datatype.BYTES, _elements(value))
    found = Datatype.of(array.dtype) if datatype is None else datatype
    wanted = found.dtype
    if array.dtype == wanted:
        return Tensor(found, array)
    if array.size and array.dtype.kind not in _FITTING[wanted.kind]:
        raise TypeError(f"it is {found}, and these are of the type {array.dtype}")
    with np.errstate(all="ignore"):
        made = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(made, array):
        raise ValueError(f"it is {found}, and has values that do not fit")
    return Tensor(found, made)


def _elements(value: Any) -> NDArray[Any]:
    """Texts, bytes and images, in whatever array or nested lists, as the elements of BYTES."""
    array = value if isinstance(value, np.ndarray) else np.array(_plain(value), object)
    made = np.empty(array.shape, object)
    made.ravel()[:] = [_bytes(each) for each in array.ravel().tolist()]
    return made


def _plain(value: Any) -> Any:
    """Without what numpy would take for an array of its own."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | np.ndarray) else _bytes(value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if is_image(type(value)):
        return png(value)
    raise TypeError(f"it is BYTES, and a {type(value).__name__} is neither text nor bytes")


def _row(spec: TensorSpec, value: Any) -> NDArray[Any]:
    """The tensor of one value that has a form in Python. Raises TypeError, ValueError: it is of another type."""
    codec = codec_named(spec.value)
    if spec.value == JSON:
        row = codec.to_row(value)
    elif spec.value == IMAGE:
        row = codec.to_row(_bytes(value))
    elif spec.value.startswith("list["):
        inner = spec.value.removeprefix("list[").removesuffix("]")
        if not isinstance(value, list | tuple | np.ndarray):
            raise TypeError(f"it is {spec.value}, and this a {type(value).__name__}")
        values = value.ravel().tolist() if isinstance(value, np.ndarray) else list(value)
        _require(inner, values)
        row = codec.to_row(values)
    else:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        _require(spec.value, [value])
        row = codec.to_row(value)
    return row.reshape(()) if spec.dims == () else row


def _require(kind: str, values: Iterable[Any]) -> None:
    for value in values:
        if not isinstance(value, _TAKES[kind]):
            raise TypeError(f"it is {kind}, and this a {type(value).__name__}")
