"""What every request passes before it reaches a route: naming, logging, counting, and the key."""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from random import getrandbits
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.logs import log_info
from octavo.server.errors import error_response, internal, unauthorized
from octavo.server.keys import ApiKey, Keyring
from octavo.server.metrics import HttpMetrics
from octavo.server.one_line import one_line
from octavo.server.request_context import CLIENT_GONE, SCOPE_KEY, RequestContext

log = logging.getLogger("octavo.server")
access_log = logging.getLogger("octavo.access")

PROBES = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")

PROBE_HEADS = tuple(f"{method} {path}".encode() for method in ("GET", "HEAD") for path in PROBES)
"""How requests for them begin."""
"""Routes that need no key: whoever watches over the process has none."""

ADMIN = "/admin"
"""Routes below need a key that opens nothing else, and exist only if there is one."""

UNLOGGED = (*PROBES, "/metrics")

WARNING_HEADER = "x-octavo-warning"

MAX_REASON = 300
"""Characters of an error in the access log."""

REQUEST_ID_HEADERS = ("x-request-id", "request-id")
"""Where OpenAI's clients look for a request's name, and where Anthropic's do."""

RAW_ID_HEADERS = tuple(name.encode() for name in REQUEST_ID_HEADERS)

USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContextMiddleware:
    """Names every request, writes one log line about it, counts it, and answers 500 for what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # answered like GET, and the server leaves out the body
            scope = {**scope, "method": "GET"}
        context = RequestContext(request_id(scope["headers"]))
        scope[SCOPE_KEY] = context
        name = context.request_id.encode()
        named = [(header, name) for header in RAW_ID_HEADERS]

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                if context.trace is not None:
                    context.trace.event("HTTP_SEND_START")
                headers = [*message.get("headers", ()), *named]
                if context.warning:
                    headers.append((WARNING_HEADER.encode(), context.warning.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            log.exception("%s %s failed (request %s)", method, _escaped_path(scope), context.request_id)
            if context.status is None:
                await error_response(internal(), scope)(scope, receive, send_named)
        finally:
            context.end()
            route = getattr(scope.get("route"), "path", "none")
            note(context, self._metrics, method, route, None if scope["path"] in UNLOGGED else _escaped_path(scope))


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's name of a request if it can be one, else a new one."""
    for name, value in headers:
        if name == RAW_ID_HEADERS[0]:
            wanted = value.decode("latin-1")
            if USABLE_ID.fullmatch(wanted):
                return wanted
            break
    return f"{getrandbits(128):032x}"


def note(context: RequestContext, metrics: HttpMetrics, method: str, route: str, path: str | None) -> None:
    """Count a request that has ended, and write its line of the log.

    Args:
        route: what metrics call it. path: escaped, for the log; None leaves it out there.
    """
    seconds = time.perf_counter() - context.started
    status = context.status or CLIENT_GONE
    if context.warning:
        log.info("%s (request %s)", context.warning, context.request_id)
    metrics.observe(method, route, status, seconds)
    if path is not None and access_log.isEnabledFor(logging.INFO):
        reason = f": {one_line(context.refusal, MAX_REASON)}" if context.refusal else ""
        took = f"{status} {seconds * 1e3:.1f} ms"
        log_info(access_log, f"{method} {path} {took}{_generated(context)}, request {context.request_id}{reason}")


def _generated(context: RequestContext) -> str:
    if not context.deployment:
        return ""
    if context.received_bytes is not None:
        return f", {context.received_bytes} bytes to and {context.sent_bytes} bytes from {context.deployment}"
    return f", {context.prompt_tokens} prompt and {context.output_tokens} output tokens of {context.deployment}"


def _escaped_path(scope: Scope) -> str:
    """The path as it may stand in a line of a log, which it must not end. Servers need not say how it came."""
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"]) if raw is None else raw.decode("latin-1")


class AuthenticationMiddleware:
    """Lets nobody without a key past, whatever the path: a route added later is closed by default.

    Args:
        keys: open everything but the administration; without any that needs none.
        admin_keys: open the administration, and nothing else.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], admin_keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = Keyring(keys)
        self._admin_keys = Keyring(admin_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            administration = path == ADMIN or path.startswith(f"{ADMIN}/")
            keyring = self._admin_keys if administration else self._keys
            if keyring and (administration or path not in PROBES):
                headers = Headers(scope=scope)
                sent = (headers.get(name, "").encode("latin-1") for name in ("authorization", "x-api-key"))
                key = keyring.find(*sent)
                if key is None:
                    await error_response(unauthorized(), scope)(scope, receive, send)
                    return
                context = RequestContext.of(scope)
                context.tenant, context.priorities = key.tenant, key.priorities
        await self._app(scope, receive, send)
