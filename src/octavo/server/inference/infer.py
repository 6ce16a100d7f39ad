"""`/infer`: one request, one reply. This is the shortest way that there is through the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference
from octavo.hosting.info import HostedInfo
from octavo.hosting.tensors import Encoded
from octavo.server.body import INLINE_BYTES
from octavo.server.compression import accepted, packed
from octavo.server.errors import invalid
from octavo.server.inference.body import read_body
from octavo.server.inference.http import BINARY, JSON, Answer, Call, CallHead, Part
from octavo.server.inference.tensor_json import read_head
from octavo.server.inference.tensors_in import Reader, head_length, raw_input
from octavo.server.inference.tensors_out import ReplyWriter, wishes
from octavo.server.inference.work import allowed_options, begin, presence
from octavo.server.offload import off_loop

LARGE_BYTES = 256 * 1024
"""Tensors that are copied, or written as JSON, are so in a thread from this size on."""

PACKED_BYTES = 512
"""Smaller replies are not compressed: they would hardly be smaller."""

STREAMS = (
    "HTTP end point doesn't support models with decoupled transaction policy: '{}' gives any number of results; use "
    "generate_stream or infer_stream"
)


async def infer(call: Call) -> None:
    """Compute outputs of input tensors, in JSON or binary."""
    deployment, info = begin_infer(call)
    data = await read_body(call)
    with presence(call):
        answer = await compute(call, deployment, info, data)
    await call.reply(*answer)


def begin_infer(call: CallHead) -> tuple[HostedDeployment, HostedInfo]:
    """As `begin`, of a model that has one result for each request."""
    deployment, info = begin(call)
    if info.streams:
        raise InferenceError(STREAMS.format(info.name), Code.UNSUPPORTED)
    return deployment, info


async def compute(call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes) -> Answer:
    """Answer a body. Raises InferenceError, ApiError."""
    inference, writer = await read_request(call, deployment, info, data)
    outputs = await deployment.client.infer(inference)
    head, parts = await write_reply(writer, outputs)
    whole: Sequence[Part] = (head, *parts)
    headers = [(b"inference-header-content-length", b"%d" % len(head))] if parts else []
    if b"accept-encoding" in call.headers:
        whole = await _compress(call, whole, headers)
    return Answer(whole, BINARY if parts else JSON, headers)


async def read_request(
    call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes
) -> tuple[Inference, ReplyWriter]:
    """What a body wants to be computed, and how it wants the results. Raises InferenceError, ApiError."""
    size = head_length(call, len(data))
    if not size:
        chosen = allowed_options(call, None)
        writer = ReplyWriter(deployment, info, {}, binary=True)
        return Inference(inputs=raw_input(info, data), priority=chosen.priority), writer
    view, memory = memoryview(data), call.server.shared_memory
    head = await read_head(call.server, view[:size])
    parameters = head.parameters
    binary = _takes_binary(parameters) if parameters else False
    chosen = allowed_options(call, parameters)
    wanted = wishes(head.outputs, memory, binary=binary) if head.outputs else {}
    reader = Reader(info.name, view[size:], memory)
    copied = 0
    for each in head.inputs:
        if each.parameters is not None:
            copied += each.parameters.shared_memory_byte_size
    if size > INLINE_BYTES or copied > LARGE_BYTES:
        inputs = await off_loop(reader.read, head.inputs)
    else:
        inputs = reader.read(head.inputs)
    inference = Inference(inputs=inputs, outputs=tuple(wanted), priority=chosen.priority, timeout=chosen.timeout)
    return inference, ReplyWriter(deployment, info, wanted, binary=binary, request_id=head.id or "")


def _takes_binary(parameters: dict[str, Any]) -> bool:
    """Takes the one parameter out that is about the protocol itself."""
    wanted = parameters.pop("binary_data_output", False)
    if not isinstance(wanted, bool):
        raise invalid("Unable to parse 'binary_data_output': it is neither true nor false")
    return wanted


async def write_reply(writer: ReplyWriter, outputs: Mapping[str, Encoded]) -> tuple[bytes, Sequence[Part]]:
    """A reply's JSON, and what follows. Raises InferenceError: it cannot be written as it is wanted."""
    size = 0
    for each in outputs.values():
        size += len(each.data)
    if size > LARGE_BYTES and writer.copies:
        return await off_loop(writer.write, outputs)
    return writer.write(outputs)


async def _compress(call: CallHead, parts: Sequence[Part], headers: list[tuple[bytes, bytes]]) -> Sequence[Part]:
    encoding = accepted(call.header(b"accept-encoding"))
    size = sum(map(len, parts))
    if not encoding or size < PACKED_BYTES:
        return parts
    headers.append((b"content-encoding", encoding.encode()))
    return (await off_loop(packed, encoding, parts) if size > INLINE_BYTES else packed(encoding, parts),)
