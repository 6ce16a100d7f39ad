"""Reading JSON bodies: bounded, and never taken for something they are not."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from octavo.server.errors import ApiError, invalid
from octavo.server.request_context import CLIENT_GONE, RequestContext


class JsonRequest(Request):
    """A request whose body is a JSON object of bounded size."""

    async def body(self) -> bytes:
        """Read the body.

        Raises:
            ApiError: 400 if it is announced as anything but JSON (a web page can send text to a local server without
                asking, but not JSON), 413 if it is longer than the limit, however it is sent.
        """
        if not hasattr(self, "_body"):
            media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json" and not media_type.endswith("+json"):
                raise invalid(f"Content-Type must be application/json, not {media_type or 'missing'}.")
            limit = self.app.state.server.settings.max_body_bytes
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise _too_large(limit)
            chunks, size = [], 0
            try:
                async for chunk in self.stream():
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    chunks.append(chunk)
            except ClientDisconnect as error:
                raise ApiError(CLIENT_GONE, "The client left before its request was complete.") from error
            self._body = b"".join(chunks)
            RequestContext.of(self.scope).body_bytes = size
            if not self._body:
                raise invalid("The request body is empty; it must be a JSON object.")
        return self._body

    async def json(self) -> dict[str, Any]:
        """Parse the body. Raises ApiError: 400 if it is no JSON object."""
        try:
            value = orjson.loads(await self.body())
        except orjson.JSONDecodeError as error:
            raise invalid(f"The request body is not valid JSON: {error}.") from error
        if not isinstance(value, dict):
            raise invalid(f"The request body must be a JSON object, not {_KINDS[type(value)]}.")
        return value


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request body is larger than the {limit:,} bytes this server accepts.")


class JsonRoute(APIRoute):
    """A route that reads its body as a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
