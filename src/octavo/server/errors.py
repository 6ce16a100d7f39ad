"""Error bodies as OpenAI's clients unwrap them, `{"error": {"message", "type", "param", "code"}}`, but on the routes of
APIs that have others."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from octavo.errors import InvalidRequest
from octavo.server.request_context import SCOPE_KEY

MAX_MESSAGE = 1000
"""Characters of an error message: a small request must not earn a large reply."""

MAX_RETRY_AFTER = 120
"""Seconds: OpenAI's clients do not retry at all when they are told to wait longer."""


class ApiError(HTTPException):
    """An error with a status and an OpenAI body. `param` is the request's field, `code` a stable name for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the field's name
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.type = type
        self.param = param
        self.code = code

    def __str__(self) -> str:
        return self.detail


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request can never be served as it is."""
    return ApiError(400, message, param=param, code=code)


def context_length_exceeded(limit: int, however: str, param: str | None = None) -> ApiError:
    """400 in OpenAI's wording, by which agents recognise that they must shorten the conversation."""
    message = f"This model's maximum context length is {limit} tokens. However, {however}"
    return invalid(message, param, "context_length_exceeded")


def unauthorized() -> ApiError:
    """401: no key, or not one of ours."""
    message = "Incorrect API key provided. Send a valid key as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def overloaded(message: str, retry_after: float | None) -> ApiError:
    """429: the queue is full, the server itself is well."""
    headers = _retry_after(retry_after)
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def unavailable(message: str, retry_after: float | None = None) -> ApiError:
    """503: no requests are taken for now."""
    headers = _retry_after(retry_after)
    return ApiError(503, message, type="server_error", code="service_unavailable", headers=headers)


def failed(message: str) -> ApiError:
    """A state that trying again does not change: 503 that clients do not retry."""
    headers = {"x-should-retry": "false"}
    return ApiError(503, message, type="server_error", code="service_unavailable", headers=headers)


def internal(message: str = "The server had an error while processing this request.") -> ApiError:
    """500. A model's tokens depend on the request alone, so the same request fails again: clients need not retry."""
    headers = {"x-should-retry": "false"}
    return ApiError(500, message, type="server_error", code="internal_error", headers=headers)


def error_message(error: ApiError) -> str:
    """What is wrong, cut to a bounded length."""
    return error.detail if len(error.detail) <= MAX_MESSAGE else error.detail[: MAX_MESSAGE - 1] + "…"


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's object, for its own routes and all that belong to no other API."""
    fields = {"message": error_message(error), "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def error_responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """What a route's documentation says about errors, whose bodies have such a schema."""
    content = {"application/json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS}


_ERRORS: tuple[tuple[int | str, str], ...] = (
    (400, "The request cannot be served as it is; the error names the field."),
    (401, "No key, or a wrong one."),
    (404, "No such model."),
    (413, "The body is too large."),
    (429, "The queue is full; try again after `Retry-After`."),
    (500, "The engine failed on this request."),
    (503, "The model is loading or the server is stopping; try again after `Retry-After`."),
    ("default", "Any other error."),
)

ERROR_RESPONSES = error_responses(ERROR_SCHEMA)
"""Of routes whose errors have OpenAI's shape."""


class ErrorFormat(Protocol):
    """Errors as one API has them."""

    def status(self, error: ApiError) -> int:
        """The status of an error response."""

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Its body."""


def error_response(error: ApiError, scope: Scope) -> Response:
    """The complete response, in the shape of the API that the path belongs to, or is below of; its reason is for the
    log, too."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    formats: Mapping[str, ErrorFormat] = scope["app"].state.error_formats
    found = next((each for root, each in formats.items() if f"{path}/".startswith(f"{root}/")), None)
    context = scope.get(SCOPE_KEY)  # there is none for what is answered before the server has begun
    if context:
        context.refusal = error_message(error)
    if found is None:
        status, body = error.status_code, orjson.dumps(error_body(error))
    else:
        status, body = found.status(error), found.error(error, context.request_id if context else "")
    return Response(body, status, headers=error.headers, media_type="application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer our own errors and the framework's (404, 405) alike."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error, request.scope)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no route {request.method} {request.scope['path']}."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = {"Allow": ", ".join(_methods(request))}
        if request.method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=allowed)
        useful = ", ".join(method for method in _methods(request) if method != "OPTIONS")
        message = f"{request.scope['path']} does not take {request.method}, only {useful}."
        return error_response(ApiError(405, message, headers=allowed), request.scope)
    else:
        message = error.detail
    return error_response(ApiError(error.status_code, message, headers=error.headers), request.scope)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Leave what nobody caught to `RequestContextMiddleware`, which knows the request's name."""
    raise error


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Answer a request that its deployment can never serve."""
    assert isinstance(error, InvalidRequest)
    message = str(error) if str(error).endswith(".") else f"{error}."
    code = None if error.context_length is None else "context_length_exceeded"
    answer = invalid(message, error.field, code)
    answer.__cause__ = error  # some APIs say the numbers in words of their own
    return error_response(answer, request.scope)


def _methods(request: Request) -> list[str]:
    """What the routes of a path take together, and what every path takes."""
    found = {"OPTIONS"}
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found |= {"GET", "HEAD"} if method == "GET" else {method}
    return sorted(found)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer parameters of a path or query that do not fit."""
    assert isinstance(error, RequestValidationError)
    errors = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
    given = {**request.query_params, **request.path_params}
    return error_response(invalid_field(errors, given), request.scope)


def invalid_field(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """400 that names the first field of a body that is wrong.

    Args:
        errors: pydantic's.
    """
    # Every branch of a union reports its own error; the one that got furthest is about what the client meant.
    worst = max(errors, key=lambda item: len(item["loc"]))
    path = getattr(worst.get("ctx", {}).get("error"), "path", ())  # of a `WrongElement`
    param = field_path(body, (*worst["loc"], *path), missing=worst["type"] == "missing")
    message = worst["msg"].removeprefix("Value error, ")
    return invalid(f"Invalid '{param}': {message}." if param else f"{message}.", param)


def field_path(body: Any, location: Sequence[str | int], *, missing: bool) -> str | None:
    """A field as the client sees it (`messages[0].content`).

    Args:
        body: the request. location: pydantic's path, in which tags of union branches are mixed with keys and indices.
        missing: whether the last element names a field that the body lacks.
    """
    path = ""
    for position, part in enumerate(location):
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            path += f"[{part}]"
        elif (
            isinstance(part, str)
            and isinstance(body, dict)
            and (part in body or (missing and position == len(location) - 1))
        ):
            path += f".{part}" if path else part
        else:
            continue
        body = body[part] if not isinstance(body, dict) else body.get(part)
    return path[:MAX_MESSAGE] or None


def retry_seconds(seconds: float | None) -> int:
    """How long a client is told to wait, which knows whole seconds only."""
    return min(max(math.ceil(seconds or 1.0), 1), MAX_RETRY_AFTER)


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {"Retry-After": str(retry_seconds(seconds))}
