"""The JSON of an inference request, typed, within bounds of depth and number of values."""

import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import orjson

from octavo.server import large_json
from octavo.server.body import INLINE_BYTES, SMALL_BYTES
from octavo.server.context import Server
from octavo.server.errors import ApiError, invalid
from octavo.server.offload import off_loop

Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class InputParameters(msgspec.Struct):
    """Where an input's bytes are, if they are not in the JSON."""

    binary_data_size: Unsigned | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: Unsigned = 0
    shared_memory_byte_size: Unsigned = 0


class Input(msgspec.Struct):
    """A tensor of a request. Without `data` it is elsewhere."""

    name: str
    datatype: str
    shape: tuple[Unsigned, ...]
    parameters: InputParameters | None = None
    data: Any = None


class OutputParameters(msgspec.Struct):
    """How an output is wanted."""

    binary_data: bool | None = None
    classification: Unsigned = 0
    shared_memory_region: str | None = None
    shared_memory_offset: Unsigned = 0
    shared_memory_byte_size: Unsigned = 0


class Output(msgspec.Struct):
    """A tensor that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class Head(msgspec.Struct):
    """What a request says in JSON."""

    inputs: list[Input]
    id: str | None = None
    outputs: list[Output] | None = None
    parameters: dict[str, Any] | None = None


T = TypeVar("T")

_head = msgspec.json.Decoder(Head)

_EXTENDED = re.compile(rb"\A\xef\xbb\xbf|\b(?:NaN|Infinity)\b")
"""What a text may have that a strict parser refuses, and clients send all the same."""


async def read_head(server: Server, data: bytes | memoryview) -> Head:
    """The JSON of a request. Raises ApiError: it is none, or says too much."""
    return await _in_place(server, data, parse_head)


async def read_json(server: Server, data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ApiError: it is none, or says too much."""
    return await _in_place(server, data, _parse_object)


async def _in_place(server: Server, data: bytes | memoryview, parse: Callable[[bytes | memoryview], T]) -> T:
    """Parse on the event loop what is small, in a thread what is larger, and few at once of what is large."""
    if len(data) <= INLINE_BYTES:
        return parse(data)
    if len(data) <= SMALL_BYTES:
        return await off_loop(parse, data)
    async with server.tensor_bodies.parsing:
        return await off_loop(parse, data)


def parse_head(data: bytes | memoryview) -> Head:
    """As `read_head`, at once."""
    if not data:
        raise _empty()
    try:
        if len(data) <= SMALL_BYTES:
            return _head.decode(data)
        return _convert(_loads(data))
    except msgspec.ValidationError as error:
        raise invalid(_wrong_field(str(error))) from error
    except msgspec.DecodeError as error:
        if len(data) <= SMALL_BYTES and _EXTENDED.search(data):
            return _convert(_loads_extended(bytes(data)))
        raise invalid(f"failed to parse the request JSON buffer: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error


def _convert(value: Any) -> Head:
    try:
        return msgspec.convert(value, Head)
    except msgspec.ValidationError as error:
        raise invalid(_wrong_field(str(error))) from error


def _parse_object(data: bytes | memoryview) -> dict[str, Any]:
    """Names are unique in it; of large ones that is not known."""
    value = _loads(data) if len(data) > SMALL_BYTES else _loads_extended(bytes(data))
    if not isinstance(value, dict):
        raise invalid("failed to parse the request JSON buffer: it is no object")
    return value


def _loads_extended(data: bytes) -> Any:
    """JSON whose names are unique, and what clients that are not strict send beside it: a byte order mark, and numbers
    that are not finite as Python, JavaScript and Triton's clients write them."""
    if not data:
        raise _empty()
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_float=_finite)
        if b"\\u" in data:  # may be half of a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid("failed to parse the request JSON buffer: The surrogate pair in string is invalid.") from None
    except ValueError as error:
        raise invalid(f"failed to parse the request JSON buffer: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    return value


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise invalid(f"input '{name:.300}' already exists in request")
        found[name] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is too large for a number")
    return value


def _loads(data: bytes | memoryview) -> Any:
    try:
        return large_json.loads(bytes(data))
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are no JSON: write them as strings, or send the tensor in binary"
        why = f"{error}{hint if _EXTENDED.search(data) else ''}"
        raise invalid(f"failed to parse the request JSON buffer: {why}") from error
    except (large_json.TooManyValuesError, large_json.ArrayTooLongError) as error:
        raise ApiError(413, f"The request is too much for JSON: {error}. Send tensors in binary.") from error


def _empty() -> ApiError:
    return invalid("failed to parse the request JSON buffer: The document is empty. at 0")


def _too_deep() -> ApiError:
    """400."""
    return invalid(f"JSON nesting depth exceeds maximum allowed limit ({large_json.MAX_DEPTH})")


def _wrong_field(message: str) -> str:
    """What a decoder says of a field, with the field in front as Triton has it."""
    what, _, path = message.partition(" - at `")
    field = path.rstrip("`").rpartition(".")[2].partition("[")[0]
    if field in ("", "$") or "missing required field" in what:
        name = what.rpartition("field ")[2].strip("`") if "missing" in what else "inputs"
        return f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"
    expected = next((each for each in _KINDS if f"`{each}" in what.partition(",")[0]), None)
    return f"Unable to parse '{field}': {_KINDS[expected] if expected else what}"


_KINDS = {
    each: f"attempt to access JSON non-{kind} as {kind}"
    for each, kind in (
        ("str", "string"),
        ("int", "unsigned-integer"),
        ("bool", "boolean"),
        ("array", "array"),
        ("object", "object"),
    )
}
"""Triton's words for a value of another kind."""
