"""Models that take bodies of their own, JSON, forms or files, as their code says; and those that take a prompt."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.types import Message, Receive

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import InferenceError
from octavo.hosting.inference import Body, BodyCall
from octavo.hosting.info import HostedInfo
from octavo.hosting.pending import Pending
from octavo.server.context import Server
from octavo.server.errors import invalid
from octavo.server.inference.body import read_body
from octavo.server.inference.events import send_events
from octavo.server.inference.http import Call, CallHead
from octavo.server.inference.items import JSON
from octavo.server.inference.work import allowed_options, begin, presence

GENERATE = "/generate"

DONE = b"[DONE]"

_OURS = ("model", "stream", "prompt")
"""Members of a body for `/generate` that are no parameters of the model."""


async def predict_body(call: Call, deployment: HostedDeployment, info: HostedInfo) -> None:
    """Answer a body with what the model makes of it; with events, if that is any number of results."""
    body = _body_call(call, await read_body(call))
    if info.streams:
        await send_events(call, _data(deployment.client.stream_call(body)))
        return
    with presence(call):
        found = await deployment.client.call(body)
    await call.reply((found.data,), found.media_type.encode())


def begin_predict(
    call: CallHead, deployment: HostedDeployment, data: bytes, on_end: Callable[[Pending], None]
) -> Pending:
    """The same for a model that has one result, without waiting: `on_end` is called when it is there."""
    return deployment.client.begin_call(_body_call(call, data), on_end)


def _body_call(call: CallHead, data: bytes) -> BodyCall:
    priority = allowed_options(call, None).priority
    return BodyCall(media_type=call.header(b"content-type"), body=data, priority=priority)


async def _data(results: AsyncIterator[Body]) -> AsyncIterator[bytes]:
    async for each in results:
        if each.media_type != JSON:
            raise InferenceError(f"the model streams {each.media_type}, which is no event; yield text or values")
        yield bytes(each.data)


# --- /generate --------------------------------------------------------------------------------------------------------


def takes_prompts(server: Server) -> bool:
    """Whether a hosted model is one that `/generate` may ask."""
    return any(each.client.info is not None and each.client.info.text for each in server.deployments.hosted)


async def generate_text(call: Call) -> Receive | None:
    """Answer `{"prompt": …}` with `{"text": …}`, or with events of it.

    Returns:
        What gives the body once more, if a language model is to answer it.
    """
    body = await read_body(call)
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        values = None
    name = values.get("model", "") if isinstance(values, dict) else ""
    deployment = _asked(call.server, name)
    if deployment is None or not isinstance(values, dict):
        return _again(body, call.receive)
    call.name = deployment.name
    _, info = begin(call)
    if not info.text:
        raise invalid(
            f"The model '{deployment.name}' takes no prompt; POST /v1/models/{deployment.name}/predict.", "model"
        )
    if not isinstance(values.get("prompt"), str):
        raise invalid("'prompt' is missing, or no text.", "prompt")
    own = {info.text: values["prompt"], **{key: value for key, value in values.items() if key not in _OURS}}
    ask = BodyCall(media_type=JSON, body=orjson.dumps(own), priority=allowed_options(call, None).priority)
    if values.get("stream"):
        await send_events(call, _pieces(deployment.client.stream_call(ask)))
    else:
        with presence(call):
            pieces = [orjson.loads(each.data) async for each in deployment.client.stream_call(ask)]
        await call.reply_json({"text": _joined(pieces)})
    return None


def _asked(server: Server, name: object) -> HostedDeployment | None:
    """The hosted model that a request is for; None if it is for a language model, or for none that there is."""
    if name:
        found = server.deployments.get(name) if isinstance(name, str) else None
        return found if isinstance(found, HostedDeployment) else None
    if server.deployments.language:
        return None
    return next((each for each in server.deployments.hosted if each.client.info and each.client.info.text), None)


async def _pieces(results: AsyncIterator[Body]) -> AsyncIterator[bytes]:
    async for each in results:
        yield b'{"text":%b}' % bytes(each.data)
    yield DONE


def _joined(pieces: list[Any]) -> Any:
    """The text of several pieces; the one result as it is."""
    return pieces[0] if len(pieces) == 1 else "".join(map(str, pieces))


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read, and then what comes after it."""
    sent = False

    async def receive_again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
