"""Tensors, and how they are written: as bytes, and as the values of JSON.

Errors have the words of Triton's: tests and people look for them.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError

MAX_ELEMENTS = (2**63 - 1) // 8
"""Of 8 bytes, the largest ones."""

MAX_DIMENSIONS = 32
"""Fewer than numpy has."""

PIECE = 2**14
"""Values of JSON that are converted at a time, in a millisecond."""

_LENGTH = struct.Struct("<I")


@dataclass(slots=True, eq=False)
class Tensor:
    """Elements of one type.

    Attributes:
        array: of any shape; its dtype is the datatype's.
    """

    datatype: Datatype
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape


Buffer = bytes | bytearray | memoryview


@dataclass(slots=True, eq=False)
class Encoded:
    """A tensor in its binary form, as it goes from process to process: little-endian, row-major; of BYTES each element
    behind its length in 4 bytes."""

    datatype: Datatype
    shape: tuple[int, ...]
    data: Buffer

    @classmethod
    def of(cls, tensor: Tensor) -> "Encoded":
        """Shares the memory of the array, but for BYTES. Raises TypeError: BYTES whose elements are no bytes."""
        if tensor.datatype is Datatype.BYTES:
            return cls(tensor.datatype, tensor.shape, to_bytes(tensor))
        return cls(tensor.datatype, tensor.shape, _bytes_of(tensor.datatype, tensor.array))

    def check(self, place: "Place") -> None:
        """See that there are as many bytes as the shape wants; the elements of BYTES are counted when they are decoded.

        Raises:
            InferenceError: there are others.
        """
        expected = element_count(self.shape, place) * self.datatype.itemsize
        if self.datatype is not Datatype.BYTES and len(self.data) != expected:
            raise InferenceError(f"input byte size mismatch for {place}. Expected {expected}, got {len(self.data)}")

    def decode(self, place: "Place") -> Tensor:
        """As `from_bytes`."""
        return from_bytes(self.datatype, self.shape, memoryview(self.data), place)


@dataclass(slots=True)
class Place:
    """Which tensor of which model, for errors."""

    input: str
    model: str

    def __str__(self) -> str:
        return f"input '{self.input}' for model '{self.model}'"


def element_count(shape: Sequence[int], place: Place) -> int:
    """The elements of a shape. Raises InferenceError: no tensor has such a shape."""
    if len(shape) > MAX_DIMENSIONS:
        raise InferenceError(f"{place} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if shape and min(shape) < 0:
        raise InferenceError(f"tensor '{place.input}' contains an invalid dimension in shape {written(shape)}")
    # As numpy counts, which has no larger arrays: in bytes, and without the dimensions of size 0.
    count = math.prod(shape)
    if count > MAX_ELEMENTS or (not count and math.prod(size for size in shape if size) > MAX_ELEMENTS):
        raise InferenceError(f"element count for tensor '{place.input}' exceeds maximum size of {MAX_ELEMENTS}")
    return count


def encoded_rows(datatype: Datatype, array: NDArray[Any], counts: Sequence[int]) -> list[Encoded]:
    """A tensor in pieces of so many rows, one after the other. They share the memory of the array, but for BYTES.

    Raises:
        TypeError: BYTES whose elements are no bytes.
    """
    at = 0
    pieces: list[Encoded] = []
    if datatype is Datatype.BYTES:
        for count in counts:
            pieces.append(Encoded.of(Tensor(datatype, array[at : at + count])))
            at += count
        return pieces
    data, rest = _bytes_of(datatype, array), array.shape[1:]
    size = len(data) // (len(array) or 1)
    for count in counts:
        pieces.append(Encoded(datatype, (count, *rest), data[at : at + count * size]))
        at += count * size
    return pieces


def _bytes_of(datatype: Datatype, array: NDArray[Any]) -> Buffer:
    """The memory of an array, of another type than BYTES, in its binary form."""
    array = np.ascontiguousarray(array, datatype.dtype)
    return array.data.cast("B") if array.size else b""


def written(shape: Sequence[int]) -> str:
    """A shape as Triton writes it."""
    return f"[{','.join(map(str, shape))}]"


def from_bytes(datatype: Datatype, shape: Sequence[int], data: memoryview, place: Place) -> Tensor:
    """A tensor from its binary form: little-endian, row-major; of BYTES each element behind its length in 4 bytes.

    The array shares the memory of `data`, but for BYTES.

    Raises:
        InferenceError: there are not as many bytes as the shape wants.
    """
    return Tensor(datatype, array_from_bytes(datatype, shape, data, place))


def array_from_bytes(datatype: Datatype, shape: Sequence[int], data: memoryview, place: Place) -> NDArray[Any]:
    """As `from_bytes`, the array alone."""
    count = element_count(shape, place)
    if datatype is Datatype.BYTES:
        elements = np.empty(count if len(data) >= count * _LENGTH.size else 0, object)
        _split(data, elements, count, place)
        return elements.reshape(shape)
    if len(data) != count * datatype.itemsize:
        expected = count * datatype.itemsize
        raise InferenceError(f"input byte size mismatch for {place}. Expected {expected}, got {len(data)}")
    array = np.frombuffer(data, datatype.dtype)  # holds `data` itself: np.ndarray would hold what that was cut from
    if datatype is Datatype.BOOL and array.size and array.view(np.uint8).max() > 1:
        array = array.view(np.uint8) != 0  # other bytes than 0 and 1 are no booleans to numpy
    return array.reshape(shape)


def _split(data: memoryview, elements: NDArray[Any], count: int, place: Place) -> None:
    """Fill an array with the elements of BYTES."""
    raw, at, number = bytes(data), 0, 0
    while at < len(raw):
        if len(raw) - at < _LENGTH.size:
            raise InferenceError(
                f"incomplete string length indicator for inference {place}, expecting {_LENGTH.size} bytes "
                f"but only {len(raw) - at} bytes available"
            )
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if number == count:
            raise InferenceError(
                f"unexpected number of string elements {number + 1} for inference {place}, expecting {count}"
            )
        if size > len(raw) - at:
            raise InferenceError(
                f"incomplete string data for inference {place}, expecting string of length {size} "
                f"but only {len(raw) - at} bytes available"
            )
        if number < elements.size:
            elements[number] = raw[at : at + size]
        at += size
        number += 1
    if number != count:
        raise InferenceError(f"expected {count} string elements for inference {place}, got {number}")


def to_bytes(tensor: Tensor) -> bytes:
    """The binary form. Raises TypeError: BYTES whose elements are no bytes."""
    if tensor.datatype is not Datatype.BYTES:
        return np.ascontiguousarray(tensor.array, tensor.datatype.dtype).tobytes()
    elements = tensor.array.ravel().tolist()
    if wrong := {type(each).__name__ for each in elements if type(each) is not bytes}:
        raise TypeError(f"elements of BYTES are bytes, not {', '.join(sorted(wrong))}")
    return b"".join(chain.from_iterable((_LENGTH.pack(len(each)), each) for each in elements))


def from_json(datatype: Datatype, shape: Sequence[int], data: Any, place: Place) -> Tensor:
    """A tensor from a list of values, in row-major order: flat, or nested in whatever way.

    Raises:
        InferenceError: other values than the datatype has, or not as many as the shape wants.
    """
    if datatype in (Datatype.FP16, Datatype.BF16):
        raise InferenceError(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input "
            f"{place.input}"
        )
    values = _flat(data, place)
    count = element_count(shape, place)
    if len(values) != count:
        raise InferenceError(
            f"Unable to parse 'data': Shape does not match true shape of 'data' field: {place} has {len(values)} "
            f"values, and the shape {written(shape)} has {count}"
        )
    array: NDArray[Any] = np.empty(count, datatype.dtype)
    for at in range(0, count, PIECE):  # between which other threads can run
        array[at : at + PIECE] = _converted(datatype, values[at : at + PIECE], place)
    return Tensor(datatype, array.reshape(shape))


def _converted(datatype: Datatype, values: list[Any], place: Place) -> NDArray[Any] | list[bytes]:
    wrong = set(map(type, values)) - _VALUES[datatype.dtype.kind]
    if wrong == {str} and datatype.dtype.kind == "f":
        values = [_NUMBERS.get(each, each) if type(each) is str else each for each in values]
        wrong = set(map(type, values)) - _VALUES["f"]
    if wrong:
        kinds, wanted = ", ".join(sorted(_KINDS.get(kind, kind.__name__) for kind in wrong)), _AS[datatype.dtype.kind]
        raise InferenceError(
            f"Unable to parse 'data': attempt to access JSON non-{wanted}: {place} is {datatype}, and has values of "
            f"another type: {kinds}"
        )
    if datatype is Datatype.BYTES:
        return [value.encode("utf-8", "surrogatepass") for value in values]
    try:
        with np.errstate(over="raise"):
            return np.array(values, datatype.dtype)
    except (OverflowError, FloatingPointError):
        raise InferenceError(f"Unable to parse 'data': {place} has values that do not fit {datatype}") from None


def _flat(data: Any, place: Place) -> list[Any]:
    if not isinstance(data, list):
        raise InferenceError(f"Unable to parse 'data': that of {place} is no list")
    kinds = _types(data)
    while kinds == {list}:
        flat: list[Any] = []
        for at in range(0, len(data), PIECE):
            flat += chain.from_iterable(data[at : at + PIECE])
        data = flat
        kinds = _types(data)
    if list in kinds:
        raise InferenceError(f"Unable to parse 'data': that of {place} has lists beside values")
    return data  # type: ignore[no-any-return]


def _types(values: list[Any]) -> set[type]:
    found: set[type] = set()
    for at in range(0, len(values), PIECE):
        found.update(map(type, values[at : at + PIECE]))
    return found


_VALUES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str}}
"""What Python calls the values that a kind of dtype can hold."""

_NUMBERS: dict[Any, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Floating point numbers that JSON has none of, as protobuf's JSON has them."""

_AS = {
    "b": "boolean as boolean",
    "u": "unsigned-integer as unsigned-integer",
    "i": "signed-integer as signed-integer",
    "f": "number as double",
    "O": "string as string",
}
"""What Triton says of values that one of these kinds of dtype cannot hold."""

_KINDS = {bool: "booleans", int: "integers", float: "numbers", str: "strings", dict: "objects", type(None): "null"}
