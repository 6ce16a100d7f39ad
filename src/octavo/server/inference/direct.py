"""The shortest way through the server: `/infer` without the application that all other requests go through.

An application of ASGI costs a request messages in both directions and every middleware's part: several times what is
done in them. What they decide is decided here with the same functions, at the end of the request's head; whatever is
unusual, or is to be refused, is left to them.
"""

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import InferenceError
from octavo.hosting.info import HostedInfo
from octavo.server.context import Server
from octavo.server.errors import ApiError, error_message, internal
from octavo.server.host_middleware import AllowedHosts
from octavo.server.inference.body import LEFT_EARLY, hold
from octavo.server.inference.http import JOINED_BYTES, Answer, CallHead, Fields, api_error, error_json
from octavo.server.inference.infer import begin_infer, compute
from octavo.server.inference.routes import INFER, Found, find_route
from octavo.server.keys import Keyring
from octavo.server.leaving import shutting_down
from octavo.server.middleware import RAW_ID_HEADERS, note, request_id
from octavo.server.request_context import CLIENT_GONE, RequestContext

if TYPE_CHECKING:
    from octavo.server.protocol import HttpProtocol

log = logging.getLogger("octavo.server")

METHOD, VERSION = b"POST", "1.1"

CACHED_TARGETS = 1024
CACHED_TARGET_LENGTH = 256

MAX_LENGTH_DIGITS = 15

_UNUSUAL = (b"content-encoding", b"expect", b"origin", b"transfer-encoding")
"""Requests with one of these headers are left to the application."""


@lru_cache(CACHED_TARGETS)
def _find(target: bytes) -> Found | None:
    """The model that a request's target is about, if it is for an inference and written plainly."""
    if not target.isascii() or b"%" in target or b"?" in target or b"#" in target:
        return None
    found = find_route(target.decode())
    return found if found is not None and found.route is INFER else None


class DirectWay:
    """Decides which requests need not go through the application."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._hosts = AllowedHosts(server.settings.allowed_hosts)
        self._keys = Keyring(server.settings.client_keys)
        self._limit = server.settings.max_tensor_body_bytes
        self._fields: Fields = ()
        self._written_fields = b""

    def begin(self, connection: "HttpProtocol") -> "Exchange | None":
        """Begin the request whose head a connection has read; None if it is the application's."""
        target = connection.url
        found = _find(target) if target.endswith(b"/infer") and len(target) <= CACHED_TARGET_LENGTH else None
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
        ):
            return None
        context = RequestContext(request_id(connection.headers))
        if self._keys:
            key = self._keys.find(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
            if key is None:
                return None
            context.tenant, context.priorities = key.tenant, key.priorities
        call = CallHead(self.server, headers, context)
        call.name, call.version = found.name, found.version
        try:
            deployment, info = begin_infer(call)
        except (InferenceError, ApiError):
            context.end()
            return None
        return Exchange(self, connection, call, deployment, info)

    def write_fields(self, fields: Fields) -> bytes:
        """The header fields that all answers have, which change once a second."""
        if fields is not self._fields:
            self._fields, self._written_fields = fields, _written(fields)
        return self._written_fields


class Exchange:
    """A request and its answer. Stands where uvicorn has its `RequestResponseCycle`, and has what is asked of that.

    Attributes:
        disconnected: the client has left, or been refused.
        keep_alive: whether the connection may have another request.
        message_event: "set" when `disconnected` is.
    """

    __slots__ = (
        *("_call", "_connection", "_deployment", "_info", "_pieces", "_size", "_task", "_way", "_target"),
        *("disconnected", "keep_alive", "response_complete", "response_started"),
    )
    waiting_for_100_continue = False

    def __init__(
        self,
        way: DirectWay,
        connection: "HttpProtocol",
        call: CallHead,
        deployment: HostedDeployment,
        info: HostedInfo,
    ) -> None:
        self._way = way
        self._connection = connection
        self._target = connection.url
        self._call = call
        self._deployment = deployment
        self._info = info
        self._pieces: list[bytes] = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = True
        connection.leaving.add(self.leave)

    @property
    def message_event(self) -> "Exchange":
        return self

    def set(self) -> None:
        """Look at `disconnected`."""
        if self.disconnected:
            self.leave()

    # What comes

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.response_complete:  # refused already
            return
        before = self._size
        self._size += len(piece)
        self._pieces.append(piece)
        try:
            hold(self._call, self._size, before, self._way.server.settings.max_tensor_body_bytes)
        except ApiError as error:
            self._refuse(error)
            self._end()

    def on_end(self) -> None:
        """All of it has come."""
        if self.response_complete:
            return
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._call.context.received_bytes = self._size
        self._task = self._connection.loop.create_task(self._run(data))
        self._way.server.in_flight.join(self._task)
        self._task.add_done_callback(self._done)

    def leave(self) -> None:
        """The client has left."""
        if self.response_complete:
            return
        self.disconnected = True
        context = self._call.context
        if not self.response_started:
            context.status = CLIENT_GONE
        if self._task is not None:
            self._task.cancel()
        else:
            self.response_complete = True
            context.refusal = LEFT_EARLY
            self._end()

    # What is answered

    async def _run(self, data: bytes) -> None:
        """Answer."""
        try:
            await self._answer(await compute(self._call, self._deployment, self._info, data))
        except asyncio.CancelledError:
            if not self.disconnected:
                self._refuse(shutting_down())
        except InferenceError as error:
            self._refuse(api_error(error))
        except ApiError as error:
            self._refuse(error)
        except Exception:
            log.exception("POST %s failed (request %s)", self._path, self._call.context.request_id)
            self._refuse(internal())

    def _done(self, task: asyncio.Task[None]) -> None:
        self._way.server.in_flight.leave(task)
        if not self.response_complete and not self.disconnected:  # cancelled before it began
            self._refuse(shutting_down())
        self._end()

    async def _answer(self, answer: Answer) -> None:
        parts, content_type, fields = answer
        size = sum(map(len, parts))
        flow, transport = self._connection.flow, self._connection.transport
        if flow.write_paused:
            await flow.drain()
        self._call.context.sent_bytes = size
        head = self._head(200, size, content_type, fields)
        if size <= JOINED_BYTES:
            transport.write(b"".join((head, *parts)))
        else:
            transport.write(head)
            for part in parts:
                transport.write(part)
                if flow.write_paused:
                    await flow.drain()
        self._finish()

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error; or, if it is too late for that, with an end."""
        if self.response_started or self.disconnected:
            self._connection.transport.close()
            return
        self._call.context.refusal = error_message(error)
        body = error_json(error)
        fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
        self._connection.transport.write(self._head(error.status_code, len(body), b"application/json", fields) + body)
        self._finish()

    def _head(self, status: int, size: int, content_type: bytes, fields: Fields) -> bytes:
        context = self._call.context
        context.status = status
        self.response_started = True
        name = context.request_id.encode()
        return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n" % (
            STATUS_LINE[status],
            self._way.write_fields(self._connection.server_state.default_headers),
            content_type,
            size,
            _written(fields),
            _NAMES % (name, name),
            b"" if self.keep_alive else b"connection: close\r\n",
        )

    def _finish(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def _end(self) -> None:
        self._connection.leaving.discard(self.leave)
        context = self._call.context
        context.end()
        note(context, self._way.server.http_metrics, "POST", INFER.path, self._path)

    @property
    def _path(self) -> str:
        return self._target.decode()


_NAMES = b"".join([b"%b: %%b\r\n" % each for each in RAW_ID_HEADERS])


def _written(fields: Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
