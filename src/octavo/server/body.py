"""Reading JSON bodies: bounded in bytes, values, memory and time, and never taken for something they are not.

What is large is unpacked, parsed and validated in a thread, in steps of a few milliseconds: streams and probes go on.
"""

from asyncio import Semaphore
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from octavo.server import large_json
from octavo.server.compression import too_large, unpacked, unpacker
from octavo.server.errors import ApiError, context_length_exceeded, invalid, invalid_field, unavailable
from octavo.server.offload import off_loop
from octavo.server.request_context import CLIENT_GONE, RequestContext
from octavo.server.schema.base import Body
from octavo.server.schema.unknown import unknown_fields

INLINE_BYTES = 8 * 1024
"""Bodies up to this size are parsed on the event loop, in about a millisecond."""

SMALL_BYTES = 256 * 1024
"""Bodies up to this size are always taken. For larger ones there are limits on all of them together."""

LARGE_BODIES_PARSED = 2
"""At once. What they say takes several times the memory that they do."""

LONGEST_ARRAY = 2**18
"""Values of an array that is read: one that has more, and more than any prompt may have tokens, is refused before."""

PROMPTS = frozenset({"input", "prompt"})
"""Fields that a model must have room for."""

CUTS = b'"truncate_prompt_tokens"'
"""A prompt of which only so much is kept may be longer than the context."""


class LargeBodies:
    """What the large bodies of a server take together.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.parsing = Semaphore(LARGE_BODIES_PARSED)
        self._free = most

    def hold(self, size: int) -> None:
        """Account for bytes that have arrived. Raises ApiError: 503 if there are too many."""
        if size > self._free:
            raise unavailable("The server has all the large request bodies that it can hold.")
        self._free -= size

    def release(self, size: int) -> None:
        """They are gone."""
        self._free += size


class JsonRequest(Request):
    """A request whose body is a JSON object of bounded size.

    Args:
        whole: the request from which this is made.
        model: what the object must be.
        held: what is given back once the body has become a request.
    """

    def __init__(self, whole: Request, model: type[BaseModel] | None, held: AsyncExitStack) -> None:
        super().__init__(whole.scope, whole.receive)
        self._model = model
        self._held = held
        self._large_bodies: LargeBodies = self.app.state.server.large_bodies
        self._limit: int = self.app.state.server.settings.max_body_bytes

    async def body(self) -> bytes:
        """Read the body.

        Raises:
            ApiError: 400 if it is announced as anything but JSON (a web page can send text to a local server without
                asking, but not JSON), 413 if it is longer than the limit, however it is sent, 415 if it is compressed
                in a way that is not known here, 503 if there are too many large ones.
        """
        if not hasattr(self, "_body"):
            self._body = await self._read()
        return self._body

    async def json(self) -> Any:
        """The object, validated.

        Raises:
            ApiError: 400 if it is no JSON object, or not one of the kind that the route takes.
        """
        data = await self.body()
        if len(data) <= INLINE_BYTES:
            return self._parse(data)
        if len(data) <= SMALL_BYTES:
            return await off_loop(self._parse, data)
        await self._held.enter_async_context(self._large_bodies.parsing)
        return await off_loop(self._parse, data)

    async def _read(self) -> bytes:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise invalid(f"Content-Type must be application/json, not {media_type or 'missing'}.")
        unpack = unpacker(self.headers.get("content-encoding", ""))
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            raise too_large(self._limit)
        chunks = await self._receive_chunks()
        size = sum(map(len, chunks))
        if unpack is not None:
            data = await off_loop(unpacked, unpack, chunks, self._limit)
            self._hold(len(data), size)
        elif size > SMALL_BYTES:
            data = await off_loop(b"".join, chunks)
        else:
            data = b"".join(chunks)
        if not data:
            raise invalid("The request body is empty; it must be a JSON object.")
        return data

    async def _receive_chunks(self) -> list[bytes]:
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in self.stream():
                self._hold(size + len(chunk), size)
                size += len(chunk)
                if size > self._limit:
                    raise too_large(self._limit)
                if chunk:
                    chunks.append(chunk)
        except ClientDisconnect as error:
            raise ApiError(CLIENT_GONE, "The client left before its request was complete.") from error
        return chunks

    @property
    def _longest_context(self) -> int:
        """Of the server's models, in tokens."""
        return max((deployment.context_length for deployment in self.app.state.server.deployments.language), default=0)

    def _hold(self, size: int, before: int) -> None:
        """A body grows from one size to another."""
        if size > max(before, SMALL_BYTES):
            more = size - before
            self._large_bodies.hold(more)
            self._held.callback(self._large_bodies.release, more)

    def _parse(self, data: bytes) -> Any:
        try:
            value = large_json.loads(data, max(LONGEST_ARRAY, self._longest_context))
        except orjson.JSONDecodeError as error:
            raise invalid(f"The request body is not valid JSON: {_reason(data, error)}.") from error
        except large_json.TooManyValuesError as error:
            raise ApiError(413, f"The request body is more than this server accepts: {error}.") from error
        except large_json.ArrayTooLongError as error:
            where = "The request body" if error.field is None else f"'{error.field}'"
            if error.field in PROMPTS and CUTS not in data:
                however = f"{where} has {error.count:,} values."
                raise context_length_exceeded(self._longest_context, however, error.field) from error
            raise invalid(f"{where} has an array of {error.count:,} values, which is too many.", error.field) from error
        if not isinstance(value, dict):
            raise invalid(f"The request body must be a JSON object, not {_KINDS[type(value)]}.")
        if self._model is None:
            return value
        try:
            body = self._model.model_validate(value)
        except ValidationError as error:
            raise invalid_field(error.errors(include_url=False, include_input=False), value) from error
        if isinstance(body, Body):
            RequestContext.of(self.scope).warning = unknown_fields(body, value)
        return body


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _reason(data: bytes, error: orjson.JSONDecodeError) -> str:
    """The parser says of bytes that are no text neither what they are nor where."""
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return f"it is not UTF-8 ({wrong.reason} at byte {wrong.start})"
    return str(error)


class JsonRoute(APIRoute):
    """A route that reads its body as a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler, which takes a validated body as it is."""
        handle = super().get_route_handler()
        wanted = self.body_field.field_info.annotation if self.body_field else None
        model = wanted if isinstance(wanted, type) and issubclass(wanted, BaseModel) else None

        async def handle_json(request: Request) -> Response:
            if model is not None:
                await request.app.state.server.entrance.enter()
            async with AsyncExitStack() as held:
                return await handle(JsonRequest(request, model, held))

        return handle_json
