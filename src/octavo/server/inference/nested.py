"""Tensors as nested lists of JSON, whose shapes are theirs; also types that the protocol itself has no JSON of."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor, from_json
from octavo.server.inference.json_arrays import array_json, scalar_json

Array = NDArray[Any]


def to_tensor(spec: TensorSpec, value: Any, place: Place) -> Tensor:
    """What a nested list is as a tensor of some kind; a value alone is one of a single element.

    Raises:
        InferenceError: its rows have different lengths, or values of another type.
    """
    shape, values = _flat(value, place)
    if not isinstance(value, list) and spec.dims and all(size in (1, ANY) for size in spec.dims):
        shape = (1,) * len(spec.dims)
    datatype = spec.datatype or datatype_of(values)
    if datatype is Datatype.BYTES:
        strings = np.empty(len(values), object)
        strings[:] = [_bytes(each, place) for each in values]
        return Tensor(datatype, strings.reshape(shape))
    if datatype not in (Datatype.FP16, Datatype.BF16):
        return from_json(datatype, shape, values, place)
    wide = from_json(Datatype.FP32, shape, values, place).array
    if datatype is Datatype.BF16:
        return Tensor(datatype, to_bf16(wide))
    with np.errstate(over="ignore"):
        return Tensor(datatype, wide.astype(np.float16))


def datatype_of(values: Sequence[Any]) -> Datatype:
    """What JSON's values are to a model that takes any: numbers with a point are those of most weights."""
    kinds = set(map(type, values))
    if kinds == {bool}:
        return Datatype.BOOL
    if kinds == {int}:
        return Datatype.INT64
    return Datatype.FP32 if kinds <= {int, float} else Datatype.BYTES


def from_tensor(output: Encoded, place: Place) -> Any:
    """What is written for a tensor: an array, and of BYTES nested lists of strings, or of {"b64": …} where they are no
    text."""
    array = output.decode(place).array
    if output.datatype is Datatype.BF16:
        array = from_bf16(array)
    if output.datatype is Datatype.BYTES:
        texts = np.empty(array.size, object)
        texts[:] = [_text(each) for each in array.ravel().tolist()]
        return texts.reshape(array.shape).tolist()
    return array if array.ndim else array.item()


def dump(value: Any) -> bytes:
    """JSON of something with arrays in it; NaN and infinity are strings."""
    return orjson.dumps(_in_json(value), option=orjson.OPT_SERIALIZE_NUMPY)


def _flat(value: Any, place: Place) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of a nested list, and its values in row-major order."""
    shape: list[int] = []
    values = [value]
    while set(map(type, values)) == {list}:
        lengths = set(map(len, values))
        if len(lengths) > 1:
            raise InferenceError(f"{place} has rows of different lengths: {', '.join(map(str, sorted(lengths)[:5]))}")
        shape += lengths
        values = list(chain.from_iterable(values))
    if list in set(map(type, values)):
        raise InferenceError(f"{place} has lists beside values")
    return tuple(shape), values


def _bytes(value: Any, place: Place) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, Mapping) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise InferenceError(f'{place} has a "b64" that is no base64: {error}') from None
    raise InferenceError(f'{place} is BYTES: its values are strings, or {{"b64": …}}')


def _text(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}


def from_bf16(bits: Array) -> Array:
    """The numbers, as FP32, that bits of BF16 are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(wide: Array) -> Array:
    """The bits of BF16 that are nearest to FP32 numbers."""
    bits = wide.astype("<f4").view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
    return np.where(np.isnan(wide), 0x7FC0, nearest).astype("<u2")


def _in_json(value: Any) -> Any:
    """The same without numbers that JSON does not have, alone and in arrays."""
    match value:
        case dict():
            return {name: _in_json(each) for name, each in value.items()}
        case list():
            return [_in_json(each) for each in value]
        case float() | np.floating() if not np.isfinite(value):
            return orjson.Fragment(scalar_json(value))
        case np.ndarray() if value.dtype.kind == "f" and not np.isfinite(value).all():
            return orjson.Fragment(array_json(value))
    return value
