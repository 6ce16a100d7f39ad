"""Results of inference as they are written: `inference.ModelInferResponse`.

Fields of a message may stand in any order, and messages one behind the other are one: what is the same from answer to
answer is written once, and the bytes of tensors are not copied.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest

from octavo.hosting.tensors import Buffer, Encoded
from octavo.hosting.wire import Part, parts_of
from octavo.protos.messages import InferResponse, StreamInferResponse

RAW, ID = bytes((6 << 3 | 2,)), bytes((3 << 3 | 2,))
"""The tags of `raw_output_contents` and `id`."""

STREAMED = bytes((2 << 3 | 2,))
"""The tag of `infer_response` in `ModelStreamInferResponse`."""

FINAL = "triton_final_response"


def write_response(head: bytes, outputs: Mapping[str, Encoded]) -> list[Buffer]:
    """An answer: buffers that are sent one behind the other.

    Args:
        head: from `response_head`.
    """
    return interleave(describe(head, parts_of(outputs)), [each.data for each in outputs.values()])


def describe(head: bytes, parts: Sequence[Part]) -> list[bytes]:
    """What stands before the bytes of each output of an answer; if it has none, all that it says."""
    described = head + b"".join([_output(each.name, each.datatype, each.shape) for each in parts])
    before = [RAW + varint(each.size) for each in parts] or [b""]
    return [described + before[0], *before[1:]]


def interleave(described: Sequence[bytes], data: Sequence[Buffer]) -> list[Buffer]:
    """An answer of what `describe` found, and the bytes of the outputs."""
    buffers: list[Buffer] = []
    for before, each in zip_longest(described, data, fillvalue=b""):
        buffers += (before, each)
    return buffers


@lru_cache(maxsize=1024)
def response_head(model: str, version: str, final: bool | None = None) -> bytes:
    """What an answer says besides its outputs and its name.

    Args:
        final: whether no other follows, of a model with any number of results.
    """
    message = InferResponse(model_name=model, model_version=version)
    if final is not None:
        message.parameters[FINAL].bool_param = final
    written: bytes = message.SerializeToString()
    return written


def response_id(request: str) -> bytes:
    """What an answer says of the name of its request."""
    name = request.encode()
    return ID + varint(len(name)) + name if name else b""


def response_parameters(parameters: Mapping[str, bool | int | float | str]) -> bytes:
    """What an answer says of what the model says beside its outputs."""
    if not parameters:
        return b""
    message = InferResponse()
    for name, value in parameters.items():
        setattr(message.parameters[name], _CHOICES[type(value)], value)
    written: bytes = message.SerializeToString()
    return written


_CHOICES = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


@lru_cache(maxsize=1024)
def _output(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """What an answer says of an output."""
    output = InferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    written: bytes = InferResponse(outputs=[output]).SerializeToString()
    return written


def streamed(response: list[Buffer]) -> list[Buffer]:
    """An answer within a stream."""
    return [STREAMED + varint(sum(map(len, response))) + bytes(response[0]), *response[1:]]


def stream_error(message: str, request: str) -> list[Buffer]:
    """An error within a stream, which goes on."""
    response = StreamInferResponse(error_message=message)
    response.infer_response.id = request
    return [response.SerializeToString()]


def varint(number: int) -> bytes:
    """A length as it is written."""
    written = bytearray()
    while number > 0x7F:
        written.append(0x80 | number & 0x7F)
        number >>= 7
    written.append(number)
    return bytes(written)
