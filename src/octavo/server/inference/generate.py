"""Triton's generate extension: tensors are members of a JSON object, and a result is one, or an event of a stream."""

import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import InferenceError
from octavo.hosting.inference import Inference, Outputs
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.tensors import Encoded, Place, from_json
from octavo.server.body import INLINE_BYTES
from octavo.server.errors import invalid
from octavo.server.inference.events import send_events
from octavo.server.inference.http import Call
from octavo.server.inference.nested import datatype_of
from octavo.server.inference.parameters import named
from octavo.server.inference.tensor_json import read_json
from octavo.server.inference.tensors_out import values_json
from octavo.server.inference.work import allowed_options, begin, presence, read_asked
from octavo.server.offload import off_loop

NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)


async def generate(call: Call) -> None:
    """Compute the one result of tensors that are members of a JSON object."""
    deployment, info, inference, request_id = await _read(call)
    found = None
    with presence(call):
        async for outputs in deployment.client.stream(inference):
            if found is not None:
                raise InferenceError(NOT_ONE)
            found = outputs
    if found is None:
        raise InferenceError(NOT_ONE)
    await call.reply((await _written(deployment, info, found, request_id),))


async def generate_stream(call: Call) -> None:
    """Compute results of tensors that are members of a JSON object: a server-sent event for each."""
    deployment, info, inference, request_id = await _read(call)

    async def events() -> AsyncIterator[bytes]:
        async for outputs in deployment.client.stream(inference):
            yield await _written(deployment, info, outputs, request_id)

    await send_events(call, events())


async def _read(call: Call) -> tuple[HostedDeployment, HostedInfo, Inference, str]:
    deployment, info = begin(call)
    if call.headers.get(b"content-encoding", b"identity") not in (b"identity", b""):
        raise invalid("Unsupported content-encoding, only 'identity' is supported.")
    data = await read_asked(call, deployment)
    body = await read_json(call.server, data)
    request_id = body.get("id", "")
    if not isinstance(request_id, str):
        raise invalid("Unable to parse 'id': it is no string")
    if len(data) > INLINE_BYTES:
        inputs, parameters = await off_loop(_tensors, info, body)
    else:
        inputs, parameters = _tensors(info, body)
    chosen, trace = allowed_options(call, parameters), call.context.trace
    if trace is not None:
        trace.request_id = request_id
    inference = Inference(
        inputs=inputs,
        priority=chosen.priority,
        timeout=chosen.timeout,
        details=named(chosen.details, request_id),
        trace=trace,
    )
    return deployment, info, inference, request_id


def _tensors(info: HostedInfo, body: Mapping[str, Any]) -> tuple[dict[str, Encoded], dict[str, Any]]:
    """The inputs among the members of a body and of its "parameters", and what else is there."""
    nested = body.get("parameters", {})
    if not isinstance(nested, dict):
        raise invalid("Expected JSON object for keyword: 'parameters'")
    specs = {spec.name: spec for spec in info.inputs}
    for name, value in nested.items():
        if name not in specs and not isinstance(value, str | int | float):
            raise invalid(
                f"Converting keyword: 'parameters': parameter '{name:.100}' has invalid type. It should be either "
                "'int', 'bool', or 'string'."
            )
    inputs, parameters = {}, {}
    for name, value in [*((each, body[each]) for each in body if each != "parameters"), *nested.items()]:
        if name in inputs:
            raise invalid(f"Converting keyword: 'parameters': input '{name:.300}' already exists in request")
        if name in specs:
            inputs[name] = _tensor(info, specs[name], value)
        else:
            parameters[name] = value
    return inputs, parameters


def _tensor(info: HostedInfo, spec: TensorSpec, value: Any) -> Encoded:
    """A tensor of a value or a flat list of them: the last dimension of any size gets all values, others of any size
    are 1."""
    values = value if isinstance(value, list) else [value]
    left = len(values)
    dims = list(info.signature.full_dims(spec))
    for size in dims:
        if size != ANY:
            if not size or left % size:
                raise _no_shape(spec)
            left //= size
    for axis in reversed(range(len(dims))):
        if dims[axis] == ANY:
            dims[axis], left = left, 1
    if left != 1:
        raise _no_shape(spec)
    datatype = spec.datatype or datatype_of(values)
    return Encoded.of(from_json(datatype, dims, values, Place(spec.name, info.name)))


def _no_shape(spec: TensorSpec) -> InferenceError:
    return InferenceError(f"The schema can not convert input '{spec.name}' to tensor with proper shape")


async def _written(deployment: HostedDeployment, info: HostedInfo, outputs: Outputs, request_id: str) -> bytes:
    if sum(len(each.data) for each in outputs.values()) > INLINE_BYTES:
        return await off_loop(_write, deployment, info, outputs, request_id)
    return _write(deployment, info, outputs, request_id)


def _write(deployment: HostedDeployment, info: HostedInfo, outputs: Outputs, request_id: str) -> bytes:
    members = {"id": orjson.dumps(request_id)} if request_id else {}
    members |= {"model_name": orjson.dumps(deployment.name), "model_version": orjson.dumps(deployment.version)}
    members |= {name: orjson.dumps(value) for name, value in outputs.parameters.items()}
    for name, output in outputs.items():
        text = values_json(output, Place(name, info.name))
        members[name] = (text[1:-1] if math.prod(output.shape) == 1 else text).encode()
    return b"{%b}" % b",".join(b"%b:%b" % (orjson.dumps(name), value) for name, value in members.items())
