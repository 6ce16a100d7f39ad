"""`/infer`: one request, one reply. This is the shortest way that there is through the server."""

from collections.abc import Sequence
from typing import Any

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference, Outputs
from octavo.hosting.info import HostedInfo
from octavo.hosting.tensors import Encoded
from octavo.hosting.wire import Output
from octavo.server.body import INLINE_BYTES
from octavo.server.compression import accepted, packed
from octavo.server.errors import invalid
from octavo.server.inference.http import BINARY, Answer, Call, CallHead, Part
from octavo.server.inference.parameters import named
from octavo.server.inference.tensor_json import Head, parse_head, read_head
from octavo.server.inference.tensors_in import LENGTH_HEADER, Reader, head_length, raw_input
from octavo.server.inference.tensors_out import LARGE_BYTES, ReplyWriter, wishes
from octavo.server.inference.work import allowed_options, begin, presence, read_asked
from octavo.server.offload import off_loop

PACKED_BYTES = 512
"""Smaller replies are not compressed: they would hardly be smaller."""

STREAMS = (
    "HTTP end point doesn't support models with decoupled transaction policy: '{}' gives any number of results; use "
    "generate_stream or infer_stream"
)


async def infer(call: Call) -> None:
    """Compute outputs of input tensors, in JSON or binary."""
    deployment, info = begin(call)
    if info.streams:
        raise InferenceError(STREAMS.format(info.name), Code.UNSUPPORTED)
    data = await read_asked(call, deployment)
    with presence(call):
        answer = await compute(call, deployment, info, data)
    await call.reply(*answer)


async def compute(call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes) -> Answer:
    """Answer a body. Raises InferenceError, ApiError."""
    inference, writer = await read_request(call, deployment, info, data)
    return await write_reply(call, writer, await deployment.client.infer(inference))


Asked = tuple[Inference, ReplyWriter]
"""What a body wants to be computed, and how it wants the results."""


def read_small(call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes) -> Asked | None:
    """Read a body, unless it takes so long that it is for a thread. Raises InferenceError, ApiError."""
    size = head_length(call, len(data))
    if not size and LENGTH_HEADER in call.headers:
        chosen = allowed_options(call, None)
        writer = ReplyWriter(deployment, info, {}, binary=True)
        inference = Inference(inputs=raw_input(info, data), priority=chosen.priority, trace=call.context.trace)
        return inference, writer
    if size > INLINE_BYTES:
        return None
    view = memoryview(data)
    head = parse_head(view[:size])
    if sum([each.parameters.shared_memory_byte_size for each in head.inputs if each.parameters]) > LARGE_BYTES:
        return None
    reader = Reader(info.name, view[size:], call.server.shared_memory)
    return _asked(call, deployment, info, head, reader.read(head.inputs))


async def read_request(call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes) -> Asked:
    """Read a body. Raises InferenceError, ApiError."""
    found = read_small(call, deployment, info, data)
    if found is not None:
        return found
    size, view = head_length(call, len(data)), memoryview(data)
    head = await read_head(call.server, view[:size])
    reader = Reader(info.name, view[size:], call.server.shared_memory)
    return _asked(call, deployment, info, head, await off_loop(reader.read, head.inputs))


def _asked(
    call: CallHead, deployment: HostedDeployment, info: HostedInfo, head: Head, inputs: dict[str, Encoded]
) -> Asked:
    parameters = head.parameters
    binary = _takes_binary(parameters) if parameters else False
    chosen = allowed_options(call, parameters)
    trace = call.context.trace
    if trace is not None:
        trace.request_id = head.id or ""
    wanted = wishes(head.outputs, call.server.shared_memory, binary=binary) if head.outputs else {}
    inference = Inference(
        inputs=inputs,
        outputs=tuple(wanted),
        priority=chosen.priority,
        timeout=chosen.timeout,
        details=named(chosen.details, head.id or ""),
        trace=trace,
    )
    return inference, ReplyWriter(deployment, info, wanted, binary=binary, request_id=head.id or "")


def _takes_binary(parameters: dict[str, Any]) -> bool:
    """Takes the one parameter out that is about the protocol itself."""
    wanted = parameters.pop("binary_data_output", False)
    if not isinstance(wanted, bool):
        raise invalid("Unable to parse 'binary_data_output': it is neither true nor false")
    return wanted


def write_small(call: CallHead, writer: ReplyWriter, output: Output, data: memoryview) -> Answer | None:
    """Write a reply, unless it takes so long that it is for a thread. Raises InferenceError: it cannot be written as
    it is wanted."""
    encoding = _encoding(call)
    if encoding and len(data) > INLINE_BYTES:
        return None
    head = b"" if output.parameters else writer.known_head(output.parts)
    if head:
        return _answer(encoding, head, (data,))
    outputs = Outputs(output, data)
    return None if writer.is_large(outputs) else _answer(encoding, *writer.write(outputs, output.parts))


async def write_reply(call: CallHead, writer: ReplyWriter, outputs: Outputs) -> Answer:
    """Write a reply. Raises InferenceError: it cannot be written as it is wanted."""
    encoding = _encoding(call)
    if writer.is_large(outputs) or (encoding and writer.size(outputs) > INLINE_BYTES):
        return await off_loop(_write, encoding, writer, outputs)
    return _write(encoding, writer, outputs)


def _write(encoding: str, writer: ReplyWriter, outputs: Outputs) -> Answer:
    return _answer(encoding, *writer.write(outputs))


def _encoding(call: CallHead) -> str:
    return accepted(call.header(b"accept-encoding")) if b"accept-encoding" in call.headers else ""


def _answer(encoding: str, head: bytes, parts: Sequence[Part]) -> Answer:
    if parts:
        answer = Answer((head, *parts), BINARY, [(LENGTH_HEADER, b"%d" % len(head))])
    else:
        answer = Answer((head,))
    if not encoding or sum(map(len, answer.parts)) < PACKED_BYTES:
        return answer
    headers = [*answer.headers, (b"content-encoding", encoding.encode())]
    return Answer((packed(encoding, answer.parts),), answer.content_type, headers)
