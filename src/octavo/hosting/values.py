"""Values of Python code as tensors: which tensor an annotation stands for, and how its values become rows of it."""

import base64
import dataclasses
import io
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import cache, partial
from pathlib import PurePath
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import ANY, TensorSpec

JSON, IMAGE = "json", "image"
"""What values are called that are neither arrays nor `str`, `int` and the like, nor lists of these."""

OUTPUT = "output"
"""The name of a result that has none."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of a type are elements of a tensor.

    Attributes:
        datatype, dims: of one value's tensor. to_value: makes a value of it. to_row: makes it of a value.
        name: of the type of values, for `codec_named`; empty for arrays.
    """

    datatype: Datatype
    dims: tuple[int, ...] | None
    to_value: Callable[[NDArray[Any]], Any]
    to_row: Callable[[Any], NDArray[Any]]
    name: str = ""

    def spec(self, name: str, *, optional: bool = False) -> TensorSpec:
        """The tensor of that name."""
        return TensorSpec(name=name, datatype=self.datatype, dims=self.dims, optional=optional, value=self.name)


def codec_of(annotation: Any) -> Codec:
    """How values of an annotated type are tensors. What has no other form is JSON in an element of BYTES.

    Raises:
        ConfigError: no tensor has such elements.
    """
    plain = without_extras(annotation)
    if is_array(plain):
        return _array(dtype_of(plain))
    if is_image(plain):
        return Codec(
            Datatype.BYTES, (1,), lambda row: open_image(row.item()), lambda value: _objects([png(value)]), IMAGE
        )
    if (kind := _scalar_kind(plain)) is not None:
        return _validated(_scalar(kind), annotation, kind)
    arguments = typing.get_args(plain)
    if typing.get_origin(plain) in (list, Sequence) and len(arguments) == 1:
        inner = _scalar_kind(without_extras(arguments[0]))
        if inner is not None:
            return _validated(_list(inner), annotation, list[inner])  # type: ignore[valid-type]
    return _json(annotation)


@cache
def codec_named(name: str) -> Codec:
    """How values of a type are tensors whose name a `Codec` has. An image is the bytes of its file."""
    if name == JSON:
        return _json(Any)
    if name == IMAGE:
        return replace(_scalar(bytes), name=IMAGE)
    kinds = {kind.__name__: kind for kind in _SCALARS}
    return _scalar(kinds[name]) if name in kinds else _list(kinds[name.removeprefix("list[").removesuffix("]")])


def fields_of(annotation: Any) -> dict[str, Any] | None:
    """The fields of a type that has named ones, each an output of its own; None if it is one output."""
    plain = without_extras(annotation)
    if not isinstance(plain, type):
        return None
    if issubclass(plain, BaseModel):
        return {name: field.annotation for name, field in plain.model_fields.items()}
    if dataclasses.is_dataclass(plain) or _is_typed_dict(plain) or hasattr(plain, "_fields"):
        return typing.get_type_hints(plain, include_extras=True)
    return None


def _is_typed_dict(plain: type) -> bool:
    """Also of `typing_extensions`, which pydantic wants with older Pythons and `typing.is_typeddict` does not know."""
    return issubclass(plain, dict) and hasattr(plain, "__required_keys__")


def named_values(value: Any, names: Sequence[str]) -> dict[str, Any]:
    """A result by the names of its outputs. Raises TypeError: it has no such fields."""
    if isinstance(value, Mapping):
        if missing := [name for name in names if name not in value]:
            raise TypeError(f"the result lacks {', '.join(missing)}")
        return {name: value[name] for name in names}
    try:
        return {name: getattr(value, name) for name in names}
    except AttributeError as error:
        raise TypeError(f"the result has no field {error.name}") from None


# --- types ------------------------------------------------------------------------------------------------------------


def without_extras(annotation: Any) -> Any:
    """An annotation without what `Annotated` adds to it, and without None."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    rest = [each for each in typing.get_args(annotation) if each is not type(None)]
    if typing.get_origin(annotation) in UNIONS and len(rest) == 1:
        return without_extras(rest[0])
    return annotation


def _scalar_kind(annotation: Any) -> type | None:
    """The type of single values, or of those that a Literal names."""
    if typing.get_origin(annotation) is typing.Literal:
        kinds = {type(each) for each in typing.get_args(annotation)}
        annotation = kinds.pop() if len(kinds) == 1 else None
    return annotation if annotation in _SCALARS else None


def is_array(annotation: Any) -> bool:
    """Whether values are numpy's arrays."""
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, np.ndarray)


def dtype_of(annotation: Any) -> np.dtype:
    """Of the arrays of a type; Float32 if it does not say. Raises ConfigError: no tensor has it."""
    for argument in typing.get_args(annotation):
        scalars = typing.get_args(argument)
        if typing.get_origin(argument) is np.dtype and scalars and isinstance(scalars[0], type):
            dtype = np.dtype(scalars[0])
            try:
                return Datatype.of(dtype).dtype
            except ValueError as error:
                raise ConfigError(f"{error}: annotate arrays with a dtype that tensors have") from None
    return np.dtype(np.float32)


def is_image(annotation: Any) -> bool:
    """Whether values are Pillow's images. It is not imported for this: whoever annotates them has done so."""
    return isinstance(annotation, type) and any(
        each.__module__ == "PIL.Image" and each.__name__ == "Image" for each in annotation.__mro__
    )


def open_image(data: bytes) -> Any:
    """An image from a file's bytes. Raises InferenceError."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        raise InferenceError("this is no image that can be read") from None
    except Exception as error:  # whatever a damaged file makes of its reader
        raise InferenceError(f"this is no image that can be read: {error}") from None
    return image


_NOT_IN_PNG = ("CMYK", "HSV", "LAB", "YCbCr")
"""Pillow's modes of colours that such a file cannot have."""


def png(image: Any) -> bytes:
    """An image as a file."""
    if image.mode in _NOT_IN_PNG:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


# --- codecs -----------------------------------------------------------------------------------------------------------


def _array(dtype: np.dtype) -> Codec:
    def to_row(value: Any) -> NDArray[Any]:
        array = np.asarray(value)
        if dtype.kind == "O":
            return _bytes_array(array)
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
            raise TypeError(f"the result is of {array.dtype}, and is annotated as {dtype}")
        return array.astype(dtype, copy=False)

    return Codec(Datatype.of(dtype), None, lambda row: row, to_row)


def _validated(codec: Codec, annotation: Any, plain: Any) -> Codec:
    """The same with what an annotation says beyond the type: bounds, or the values that there are."""
    if annotation == plain:
        return codec
    adapter = TypeAdapter(annotation)

    def to_value(row: NDArray[Any]) -> Any:
        try:
            return adapter.validate_python(codec.to_value(row))
        except ValidationError as error:
            raise InferenceError(described(error)) from None

    return replace(codec, to_value=to_value)


def _scalar(kind: type) -> Codec:
    datatype = _SCALARS[kind]
    if datatype is Datatype.BYTES:
        read = _text if kind is str else bytes
        return Codec(datatype, (1,), lambda row: read(row.item()), lambda value: _objects([_raw(value)]), kind.__name__)
    write = partial(np.array, dtype=datatype.dtype)
    return Codec(datatype, (1,), lambda row: kind(row.item()), lambda value: write([value]), kind.__name__)


def _list(kind: type) -> Codec:
    datatype, name = _SCALARS[kind], f"list[{kind.__name__}]"
    if datatype is Datatype.BYTES:
        read = _text if kind is str else bytes
        return Codec(
            datatype, (ANY,), lambda row: [read(each) for each in row], lambda value: _objects(map(_raw, value)), name
        )
    write = partial(np.array, dtype=datatype.dtype)
    return Codec(datatype, (ANY,), lambda row: row.tolist(), lambda value: write(value).reshape(-1), name)


def _json(annotation: Any) -> Codec:
    try:
        config = ConfigDict(arbitrary_types_allowed=True) if fields_of(annotation) is None else None
        adapter = TypeAdapter(annotation, config=config)
    except Exception as error:  # pydantic's errors of types have no class in common
        raise ConfigError(f"the type {annotation} cannot be read from JSON: {str(error).splitlines()[0]}") from None

    def to_value(row: NDArray[Any]) -> Any:
        try:
            return adapter.validate_json(row.item())
        except ValidationError as error:
            raise InferenceError(f"{described(error)} (a value in JSON)") from None

    return Codec(Datatype.BYTES, (1,), to_value, lambda value: _objects([to_json(value)]), JSON)


def described(error: ValidationError) -> str:
    """The first thing that is wrong with a value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")  # what pydantic says before the words of a validator
    return f"{where}: {said}" if where else said


def to_json(value: Any) -> bytes:
    """A value as JSON: arrays as lists, models as objects, bytes and images in base 64. Raises TypeError."""
    try:
        return orjson.dumps(value, default=_plainer, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise TypeError(f"the result cannot be written as JSON: {error.__cause__ or error}") from None


def _plainer(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if is_image(type(value)):
        return base64.b64encode(png(value)).decode()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "tolist"):  # numpy's other scalars and arrays, and tensors of torch
        return value.tolist()
    if isinstance(value, timedelta | Decimal | PurePath):
        return to_jsonable_python(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InferenceError(f"a text is not UTF-8: {error.reason} at byte {error.start}") from None


def _raw(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"the result has {type(value).__name__}, and is annotated as str or bytes")


def _bytes_array(array: NDArray[Any]) -> NDArray[Any]:
    return _objects(map(_raw, array.ravel().tolist())).reshape(array.shape)


def _objects(values: Any) -> NDArray[Any]:
    found = list(values)
    array = np.empty(len(found), object)
    array[:] = found
    return array


UNIONS = (typing.Union, type(int | None))

_SCALARS: dict[Any, Datatype] = {
    bool: Datatype.BOOL,
    int: Datatype.INT64,
    float: Datatype.FP64,
    str: Datatype.BYTES,
    bytes: Datatype.BYTES,
}
