"""Requests and replies of the protocol, as the server's raw interface has them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.hosting.errors import Code, InferenceError
from octavo.server.context import Server
from octavo.server.errors import ApiError, error_body, error_message, internal, invalid, unavailable
from octavo.server.request_context import RequestContext

ROOT = "/v2"
"""Where the protocol's routes are."""

JSON = b"application/json"
BINARY = b"application/octet-stream"
PLAIN = b"text/plain; charset=utf-8"

JOINED_BYTES = 64 * 1024
"""Bodies up to this size are sent in one piece; to copy a larger one takes longer than to send its parts."""

Part = bytes | bytearray | memoryview

Fields = Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        parts: of its body, one behind the other. headers: further ones.
    """

    parts: Sequence[Part]
    content_type: bytes = JSON
    headers: Fields = ()


_STATUS = {Code.NOT_FOUND: 404, Code.UNSUPPORTED: 501}


class CallHead:
    """A request without its body.

    Attributes:
        name, version: of the model, or of what else the path names; empty if it names none.
        headers: the last one of each name.
    """

    __slots__ = ("context", "headers", "name", "server", "version")

    def __init__(self, server: Server, headers: dict[bytes, bytes], context: RequestContext) -> None:
        self.server = server
        self.headers = headers
        self.context = context
        self.name = ""
        self.version = ""

    def header(self, name: bytes) -> str:
        """A header's value; empty if there is none."""
        return self.headers.get(name, b"").decode("latin-1")


class Call(CallHead):
    """A request as an ASGI application gets it."""

    __slots__ = ("receive", "scope", "send")

    def __init__(self, server: Server, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(server, dict(scope["headers"]), RequestContext.of(scope))
        self.scope = scope
        self.receive = receive
        self.send = send

    async def reply(self, parts: Sequence[Part], content_type: bytes = JSON, headers: Fields = ()) -> None:
        """Send a whole answer. See `Answer`."""
        self.context.sent_bytes = size = sum(map(len, parts))
        start = [(b"content-type", content_type), (b"content-length", b"%d" % size), *headers]
        await self.send({"type": "http.response.start", "status": 200, "headers": start})
        if size <= JOINED_BYTES:
            await self.send({"type": "http.response.body", "body": b"".join(parts)})
            return
        for part in parts:
            await self.send({"type": "http.response.body", "body": part, "more_body": True})
        await self.send({"type": "http.response.body", "body": b""})

    async def reply_json(self, value: Any) -> None:
        """Send a value."""
        await self.reply((orjson.dumps(value),))


def api_error(error: InferenceError) -> ApiError:
    """The same with a status."""
    message = str(error)
    if error.code is Code.UNAVAILABLE:
        return unavailable(message, error.retry_after)
    if error.code is Code.INTERNAL:
        return internal(message)
    status = _STATUS.get(error.code)
    return invalid(message, error.field) if status is None else ApiError(status, message)


def error_json(error: ApiError) -> bytes:
    """The body of an error, as all of the protocol's clients read it."""
    return orjson.dumps({"error": error_message(error)})


def error_below_routes(error: ApiError, path: str) -> bytes:
    """The body of an error that no route answers with: the protocol's, or that of all others."""
    ours = path == ROOT or path.startswith(f"{ROOT}/")
    return error_json(error) if ours else orjson.dumps(error_body(error))


class ErrorFormat:
    """Errors of the protocol's routes, and of those below them."""

    def status(self, error: ApiError) -> int:
        """Its own."""
        return error.status_code

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Its body."""
        return error_json(error)


async def refuse(call: Call, error: ApiError) -> None:
    """Answer with an error."""
    call.context.refusal = error_message(error)
    answer = Response(error_json(error), error.status_code, headers=error.headers, media_type="application/json")
    await answer(call.scope, call.receive, call.send)
