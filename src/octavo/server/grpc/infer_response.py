"""Results of inference as they are written: `inference.ModelInferResponse`.

Fields of a message may stand in any order, and messages one behind the other are one: what is the same from answer to
answer is written once, and the bytes of tensors are not copied.
"""

from collections.abc import Mapping
from functools import lru_cache

from octavo.hosting.datatypes import Datatype
from octavo.hosting.tensors import Buffer, Encoded
from octavo.protos.messages import InferResponse, StreamInferResponse

RAW = bytes((6 << 3 | 2,))
"""The tag of `raw_output_contents`."""

STREAMED = bytes((2 << 3 | 2,))
"""The tag of `infer_response` in `ModelStreamInferResponse`."""

FINAL = "triton_final_response"


def write_response(head: bytes, outputs: Mapping[str, Encoded]) -> list[Buffer]:
    """An answer: buffers that are sent one behind the other.

    Args:
        head: from `response_head`.
    """
    described = [head, *(_output(name, each.datatype, each.shape) for name, each in outputs.items())]
    buffers: list[Buffer] = []
    for each in outputs.values():
        described.append(RAW + varint(len(each.data)))
        buffers += (b"".join(described), each.data)
        described.clear()
    return buffers or [b"".join(described)]


@lru_cache(maxsize=1024)
def response_head(model: str, version: str, request: str, final: bool | None = None) -> bytes:
    """What an answer says besides its outputs.

    Args:
        request: its name. final: whether no other follows, of a model with any number of results.
    """
    message = InferResponse(model_name=model, model_version=version, id=request)
    if final is not None:
        message.parameters[FINAL].bool_param = final
    written: bytes = message.SerializeToString()
    return written


@lru_cache(maxsize=1024)
def _output(name: str, datatype: Datatype, shape: tuple[int, ...]) -> bytes:
    """What an answer says of an output."""
    output = InferResponse.InferOutputTensor(name=name, datatype=datatype.value, shape=shape)
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
