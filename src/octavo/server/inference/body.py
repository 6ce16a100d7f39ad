"""Bodies with tensors: bounded in bytes, one by one and all together, and not copied but to put their pieces together.

No Content-Type is asked for: Triton's clients send none.
"""

from functools import partial

import orjson
from starlette.types import Message

from octavo.server.body import SMALL_BYTES
from octavo.server.compression import too_large, unpacked, unpacker
from octavo.server.errors import ApiError, invalid
from octavo.server.inference.http import Call, CallHead
from octavo.server.offload import off_loop
from octavo.server.request_context import CLIENT_GONE

LEFT_EARLY = "The client left before its request was complete."

_JSON_TYPES = (b"application/json", b"application/octet-stream")
"""Which web pages cannot send to another server without asking it first (CORS)."""


async def read_body(call: Call) -> bytes:
    """The whole body, unpacked. What it takes is accounted for until the request has ended.

    Raises:
        ApiError: 403 if it is a page's of another site, 413 if it is longer than the limit, however it is sent, 415 if
            it is compressed in a way that is not known here, 503 if there are too many large ones.
    """
    headers = call.headers
    if b"origin" in headers:
        _check_origin(call)
    limit = call.server.settings.max_tensor_body_bytes
    announced = headers.get(b"content-length", b"0")
    if len(announced) > 5 and announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    message = await call.receive()
    if not message.get("more_body") and b"content-encoding" not in headers:
        body: bytes = _piece(message)
        hold(call, len(body), 0, limit)
        call.context.received_bytes = len(body)
        return body
    return await _read_pieces(call, message, limit)


async def _read_pieces(call: Call, message: Message, limit: int) -> bytes:
    unpack = unpacker(call.header(b"content-encoding"))
    pieces: list[bytes] = []
    size = 0
    while True:
        piece = _piece(message)
        hold(call, size + len(piece), size, limit)
        size += len(piece)
        if piece:
            pieces.append(piece)
        if not message.get("more_body"):
            break
        message = await call.receive()
    call.context.received_bytes = size
    if unpack is not None:
        data = await off_loop(unpacked, unpack, pieces, limit)
        hold(call, len(data), size, limit)
        return data
    return b"".join(pieces)


def _piece(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ApiError(CLIENT_GONE, LEFT_EARLY)
    piece: bytes = message.get("body", b"")
    return piece


def hold(call: CallHead, size: int, before: int, limit: int) -> None:
    """A body grows from one size to another. Raises ApiError: it is too large, or there are too many large ones."""
    if size > limit:
        raise _too_large(size, limit)
    if size > SMALL_BYTES and size > before:
        bodies = call.server.tensor_bodies
        bodies.hold(size - before)
        call.context.at_end(partial(bodies.release, size - before))


def _too_large(size: int, limit: int) -> ApiError:
    message = (
        f"request size of {size} bytes exceeds the maximum allowed input size of {limit} bytes. Use "
        "--max-tensor-body-bytes to increase the limit."
    )
    return ApiError(413, message)


def _check_origin(call: Call) -> None:
    """A page may send what no browser asks about to the server that it comes from, and to one that allows its site."""
    origin, allowed = call.header(b"origin"), call.server.settings.allowed_origins
    media_type = call.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    own = origin.partition("://")[2] == call.header(b"host")
    if media_type in _JSON_TYPES or own or "*" in allowed or origin in allowed:
        return
    raise ApiError(403, f"Pages of {origin[:100]} may not use this server; --allowed-origins says which may.")


async def read_object(call: Call) -> dict[str, object]:
    """A small JSON object; an empty body is an empty one. Raises ApiError: it is none."""
    data = await read_body(call)
    if len(data) > SMALL_BYTES:
        raise too_large(SMALL_BYTES)
    return read_json_object(data)


def read_json_object(data: bytes) -> dict[str, object]:
    """The JSON object of a body; an empty body is an empty one. Raises ApiError: it is none."""
    if not data:
        return {}
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise invalid(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(value, dict):
        raise invalid("failed to parse the request JSON buffer: it is no object")
    return value
