"""Requests of inference as they are written: `inference.ModelInferRequest`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Buffer, Place, Tensor, to_bytes
from octavo.hosting.trace import Span
from octavo.protos.messages import InferRequest
from octavo.server.inference.parameters import Options, options

RAW = 7 << 3 | 2
ID = 3 << 3 | 2
APART = frozenset((RAW, ID))
"""The tags of `raw_input_contents` and `id`, which are no part of a head."""

NO_MESSAGE = "the request is no inference.ModelInferRequest, or its end is missing"

LENGTH_DELIMITED = 2

MAX_VARINT = 5
"""Bytes of a length."""

EMPTY_FINAL = "triton_enable_empty_final_response"

_CONTENTS = {
    "bool_contents": ("BOOL", (Datatype.BOOL,)),
    "int_contents": ("INT32", (Datatype.INT8, Datatype.INT16, Datatype.INT32)),
    "int64_contents": ("INT64", (Datatype.INT64,)),
    "uint_contents": ("UINT32", (Datatype.UINT8, Datatype.UINT16, Datatype.UINT32)),
    "uint64_contents": ("UINT64", (Datatype.UINT64,)),
    "fp32_contents": ("FP32", (Datatype.FP32,)),
    "fp64_contents": ("FP64", (Datatype.FP64,)),
    "bytes_contents": ("BYTES", (Datatype.BYTES,)),
}
"""Fields of typed contents: what Triton calls their values, and the datatypes that they are for."""


@dataclass(frozen=True, slots=True)
class Region:
    """A place in memory that client and server share. Attributes: name: of the region. offset, size: bytes of it."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class InputHead:
    """An input but for its bytes.

    Attributes:
        data: from typed contents. region: where they lie. Without both they are raw, behind the request's head.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class OutputHead:
    """An output that is wanted.

    Attributes:
        classes: so many of the best ones, instead; 0 for the output as it is. region: for its bytes.
    """

    name: str
    classes: int = 0
    region: Region | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferHead:
    """A request but for raw bytes.

    Attributes:
        version: empty for any. names: of the outputs; none for all.
        raw: so many inputs have their bytes there. plain: no tensor lies in a region, and none is classified.
        all_raw: whether these are all inputs.
        options: what is said of its treatment.
        empty_final: whether the end of a stream of results is told in a message of its own.
    """

    model: str
    version: str
    inputs: tuple[InputHead, ...]
    outputs: tuple[OutputHead, ...]
    names: tuple[str, ...]
    raw: int
    all_raw: bool
    plain: bool
    options: Options
    empty_final: bool

    def check_raw(self, given: int) -> None:
        """See that the raw bytes are those of its inputs. Raises InferenceError."""
        if given == self.raw:
            return
        for each in self.inputs:
            if each.data is not None and given:
                raise InferenceError(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{each.name}' for model '{self.model}'"
                )
        missing = [each.name for each in self.inputs if each.data is None and each.region is None][given:]
        if missing:
            raise InferenceError(
                f"unable to find data for input tensor '{missing[0]}' for model '{self.model}' in request."
            )
        raise InferenceError(
            f"raw_input_contents has {given} entries, but {self.raw} inputs for model '{self.model}' have their data "
            "there"
        )


class Request(NamedTuple):
    """A request in three parts.

    Attributes:
        head: all but the others: a whole message itself, whose order of fields says nothing.
        raw: the raw bytes of its inputs, which share the memory of the request. id: its name.
        trace: where it is written down, if it is.
    """

    head: bytes
    raw: list[Buffer]
    id: str
    trace: Span | None = None


def split(message: Buffer) -> Request:
    """Take a request apart. Clients send the same head again and again. Raises InferenceError: this is no message."""
    at, end, begin = 0, len(message), 0
    heads: list[Buffer] = []
    raw: list[Buffer] = []
    name: Buffer = b""
    while at + 1 < end:
        tag, size, body = message[at], message[at + 1], at + 2
        if size > 0x7F:
            size, body = _length(message, at + 1)
        after = body + size
        if tag & 0x87 != LENGTH_DELIMITED or after > end:  # a field that this edition does not have, or half of one
            return _split_any(message)
        if tag in APART:
            if begin < at:
                heads.append(message[begin:at])
            begin = after
            if tag == RAW:
                raw.append(message[body:after])
            else:
                name = message[body:after]
        at = after
    if at < end:
        return _split_any(message)
    if begin < end:
        heads.append(message[begin:])
    head = bytes(heads[0]) if len(heads) == 1 else b"".join(heads)
    return Request(head, raw, _text(name) if name else "")


def _text(written: Buffer) -> str:
    try:
        return str(written, "utf-8")
    except UnicodeDecodeError:
        raise InferenceError(NO_MESSAGE) from None


def _length(message: Buffer, at: int) -> tuple[int, int]:
    """A length of more than one byte, and where it ends; too large a one if that is not there."""
    size = shift = 0
    for index in range(at, min(at + MAX_VARINT, len(message))):
        size |= (message[index] & 0x7F) << shift
        shift += 7
        if message[index] < 0x80:
            return size, index + 1
    return len(message), at


def _split_any(message: Buffer) -> Request:
    request = _parsed(message)
    raw: list[Buffer] = list(request.raw_input_contents)
    name = request.id
    request.ClearField("raw_input_contents")
    request.ClearField("id")
    return Request(request.SerializeToString(), raw, name)


def _parsed(message: Buffer) -> Any:
    try:
        return InferRequest.FromString(message)
    except DecodeError:
        raise InferenceError(NO_MESSAGE) from None


def parse_head(head: bytes) -> InferHead:
    """Read what `split` found. Raises InferenceError: it cannot be served as it is."""
    request = _parsed(head)
    model = request.model_name
    inputs = tuple(_input(each, model) for each in request.inputs)
    if len({each.name for each in inputs}) < len(inputs):
        names = [each.name for each in inputs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InferenceError(f"input '{twice}' already exists in request for model '{model}'")
    outputs = tuple(_output(each) for each in request.outputs)
    parameters = _parameters(request.parameters)
    empty_final = bool(parameters.pop(EMPTY_FINAL, False))
    raw = sum(each.data is None and each.region is None for each in inputs)
    return InferHead(
        model=model,
        version=request.model_version,
        inputs=inputs,
        outputs=outputs,
        names=tuple(each.name for each in outputs),
        raw=raw,
        all_raw=raw == len(inputs),
        plain=not any(each.region for each in inputs) and not any(each.region or each.classes for each in outputs),
        options=options(parameters),
        empty_final=empty_final,
    )


def _parameters(parameters: Any) -> dict[str, object]:
    """Their values, by name. Raises InferenceError: one has none, or not of its type."""
    values: dict[str, object] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        expected = _EXPECTED.get(name, ())
        if kind is None or (expected and kind not in expected):
            listed = " or ".join(expected or ("int64_param", "bool_param", "string_param"))
            raise InferenceError(f"invalid value type for '{name:.100}' parameter, expected {listed}.")
        values[name] = getattr(parameter, kind)
    return values


_EXPECTED = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param", "uint64_param"),
    EMPTY_FINAL: ("bool_param",),
}


def _input(tensor: Any, model: str) -> InputHead:
    name = tensor.name
    try:
        datatype = Datatype(tensor.datatype)
    except ValueError:
        raise InferenceError(
            f"inference input '{name}' data-type is '{tensor.datatype}', which is none of {', '.join(Datatype)}"
        ) from None
    shape = tuple(tensor.shape)
    region = _region(tensor)
    if region is None:
        data = _typed(tensor, datatype, model) if tensor.HasField("contents") else None
        return InputHead(name, datatype, shape, data)
    if tensor.HasField("contents"):
        raise InferenceError(
            f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model '{model}'"
        )
    return InputHead(name, datatype, shape, None, region)


def _typed(tensor: Any, datatype: Datatype, model: str) -> bytes:
    """Typed contents as raw ones."""
    contents = tensor.contents
    given = [(field, values) for field in _CONTENTS if (values := getattr(contents, field))]
    if not given:
        return b""
    if len(given) > 1:
        raise InferenceError(
            f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}', binary data was "
            "already supplied."
        )
    field, values = given[0]
    kind, datatypes = _CONTENTS[field]
    if datatype not in datatypes:
        raise InferenceError(
            f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}' of type '{kind}', "
            f"expected datatype '{datatype}'"
        )
    if datatype is Datatype.BYTES:
        elements = np.empty(len(values), object)
        elements[:] = list(values)
        return to_bytes(Tensor(datatype, elements))
    array = np.fromiter(values, np.dtype(_WIDEST[field]), len(values))
    narrow = array.astype(datatype.dtype)
    if datatype.dtype.kind in "iu" and not np.array_equal(narrow, array):
        raise InferenceError(f"{Place(tensor.name, model)} has values that do not fit {datatype}")
    return narrow.tobytes()


_WIDEST = {
    "bool_contents": "?",
    "int_contents": "<i4",
    "int64_contents": "<i8",
    "uint_contents": "<u4",
    "uint64_contents": "<u8",
    "fp32_contents": "<f4",
    "fp64_contents": "<f8",
}


def _region(tensor: Any) -> Region | None:
    parameters = tensor.parameters
    if "shared_memory_region" not in parameters:
        for name in ("shared_memory_offset", "shared_memory_byte_size"):
            if name in parameters:
                raise InferenceError(f"'{name}' can not be specified without 'shared_memory_region'")
        return None
    size = _parameter(parameters, "shared_memory_byte_size", "int64_param")
    if not size:
        raise InferenceError(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"'{tensor.name:.300}'"
        )
    name = _parameter(parameters, "shared_memory_region", "string_param")
    return Region(name, _parameter(parameters, "shared_memory_offset", "int64_param") or 0, size)


def _parameter(parameters: Any, name: str, kind: str) -> Any:
    if name not in parameters:
        return None
    parameter = parameters[name]
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InferenceError(f"invalid value type for '{name}' parameter, expected {kind}.")
    return getattr(parameter, kind)


def _output(tensor: Any) -> OutputHead:
    classes = _parameter(tensor.parameters, "classification", "int64_param") or 0
    region = _region(tensor)
    if classes and region is not None:
        raise InferenceError("output can't set both 'shared_memory_region' and 'classification'")
    if classes < 0:
        raise InferenceError(f"'classification' of output '{tensor.name}' is {classes}, but must be > 0")
    return OutputHead(tensor.name, classes, region)
