"""The shortest way through the server: `/infer` and `/predict` without the application that all other requests go
through.

An application of ASGI costs a request messages in both directions and every middleware's part: several times what is
done in them. What they decide is decided here with the same functions, at the end of the request's head; whatever is
unusual, or is to be refused, is left to them.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from octavo.hosting.errors import InferenceError
from octavo.server.context import Server
from octavo.server.errors import ApiError
from octavo.server.host_middleware import AllowedHosts
from octavo.server.inference.exchange import Exchange, Request, written_fields
from octavo.server.inference.http import CallHead, Fields
from octavo.server.inference.routes import INFER, PREDICT, Found, find_route
from octavo.server.inference.small import SmallReader
from octavo.server.inference.work import begin
from octavo.server.keys import Keyring
from octavo.server.middleware import RAW_ID_HEADERS, request_id
from octavo.server.request_context import RequestContext

if TYPE_CHECKING:
    from octavo.server.protocol import HttpProtocol

METHOD, VERSION = b"POST", "1.1"

CACHED_TARGETS = 1024
CACHED_TARGET_LENGTH = 256

MAX_LENGTH_DIGITS = 15

REMEMBERED_HEADS, REMEMBERED_HEAD_BYTES = 256, 2048
"""What was decided about the heads of requests is kept, up to so many bytes each: clients send the same again and
again."""

_TARGETS = (b"/infer", b"/predict")

_UNUSUAL = (b"content-encoding", b"expect", b"origin", b"transfer-encoding")
"""Requests with one of these headers are left to the application."""


@lru_cache(CACHED_TARGETS)
def _find(target: bytes) -> Found | None:
    """The model that a request's target is about, if it is for one of these and written plainly."""
    if not target.isascii() or b"%" in target or b"?" in target or b"#" in target:
        return None
    found = find_route(target.decode())
    return found if found is not None and found.route in (INFER, PREDICT) else None


class DirectWay:
    """Decides which requests need not go through the application."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._hosts = AllowedHosts(server.settings.allowed_hosts)
        self._keys = Keyring(server.settings.client_keys)
        self._limit = server.settings.max_tensor_body_bytes
        self._fields: Fields = ()
        self._written_fields = b""
        self._known: dict[bytes, Request] = {}
        self.reader = SmallReader()
        server.deployments.subscribe(lambda _: self.reader.forget())

    def begin(self, connection: "HttpProtocol", data: bytes) -> Exchange | None:
        """Begin the request whose head a connection has read; None if it is the application's.

        Args:
            data: the first bytes of the request.
        """
        request = self._decide(connection)
        if request is None:
            return None
        if head := _whole_head(data, len(connection.headers)):
            if len(self._known) >= REMEMBERED_HEADS:
                self._known.clear()
            self._known[head] = request
        return self._enter(connection, request)

    def recall(self, connection: "HttpProtocol", data: bytes) -> Exchange | None:
        """Begin the request that is all of `data`, if its head has been decided about before; None if it has not, or
        cannot begin now. It is the connection's, and has the body."""
        ends = data.find(b"\r\n\r\n") + 4
        request = self._known.get(data[:ends])
        if request is None or len(data) != ends + request.length:
            return None
        exchange = self._enter(connection, request)
        if exchange is not None:
            connection.cycle = exchange  # type: ignore[assignment]
            exchange.on_body(data[ends:])
        return exchange

    def _decide(self, connection: "HttpProtocol") -> Request | None:
        """Whether a head is one of those, whatever the server does at the moment."""
        target = connection.url
        found = _find(target) if target.endswith(_TARGETS) and len(target) <= CACHED_TARGET_LENGTH else None
        parser = connection.parser
        if (
            found is None
            or parser.get_method() != METHOD
            or parser.get_http_version() != VERSION
            or not parser.should_keep_alive()
        ):
            return None
        headers = dict(connection.headers)
        length = headers.get(b"content-length", b"")
        if (
            len(headers) != len(connection.headers)  # one is there twice
            or not headers.keys().isdisjoint(_UNUSUAL)
            or not length.isdigit()
            or len(length) > MAX_LENGTH_DIGITS
            or int(length) > self._limit
            or self._hosts.problem(headers.get(b"host", b"")) is not None
            or self.server.http_restrictions.missing(found.route.api, headers) is not None
        ):
            return None
        key = None
        if self._keys:
            key = self._keys.find(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
            if key is None:
                return None
        return Request(target.decode(), found, headers, int(length), key)

    def _enter(self, connection: "HttpProtocol", request: Request) -> Exchange | None:
        """Begin a request; None if it is to be refused."""
        headers, key = request.headers, request.key
        context = RequestContext(request_id(headers.items() if RAW_ID_HEADERS[0] in headers else ()))
        if key is not None:
            context.tenant, context.priorities = key.tenant, key.priorities
        call = CallHead(self.server, headers, context)
        call.name, call.version = request.found.name, request.found.version
        try:
            deployment, info = begin(call)
        except (InferenceError, ApiError):
            context.end()
            return None
        if info.streams or (request.found.route is PREDICT and info.body is None):
            context.end()
            return None
        return Exchange(self, connection, request, call, deployment, info)

    def write_fields(self, fields: Fields) -> bytes:
        """The header fields that all answers have, which change once a second."""
        if fields is not self._fields:
            self._fields, self._written_fields = fields, written_fields(fields)
        return self._written_fields


def _whole_head(data: bytes, headers: int) -> bytes:
    """The head that a request's first bytes begin with; empty if it is not all there, or too long to be remembered.

    Args:
        headers: how many the parser found. Had it taken another line than an empty one for the end, or two lines for
            one header, there would be another number of lines.
    """
    ends = data.find(b"\r\n\r\n", 0, REMEMBERED_HEAD_BYTES) + 4
    head = data[:ends]
    lines = headers + 2
    plain = head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == lines
    return head if ends > 4 and plain else b""
