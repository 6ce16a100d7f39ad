"""Uvicorn's HTTP/1.1 protocol with what it lacks: bounds and times for all that a client sends, requests that offer to
change the protocol, and our error bodies below the routes."""

import logging
import math
import re
from asyncio import Transport
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from octavo.server.connections import Admission, Connections
from octavo.server.entrance import BYTES_PER_SHARE, WHOLE
from octavo.server.errors import ApiError, internal, invalid
from octavo.server.inference.exchange import Exchange
from octavo.server.inference.http import error_below_routes
from octavo.server.middleware import PROBE_HEADS
from octavo.server.request_context import LEAVING_KEY

log = logging.getLogger("octavo.server")

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line, the headers and the trailers together; also of anything else that is not part of a body."""

PIECE_BYTES = 8 * 1024
"""What is parsed at a time, so that bytes of which the parser makes nothing are noticed."""

HELD_BYTES = 64 * 1024
"""Of a request that waits for its turn; a client that sends more waits, too."""

MAX_HEADERS = 256

LIGHT_HEADS = (b"POST /v2/models/", b"POST /v1/models/")
"""How requests begin that take little to begin if they are small."""

MAX_PIPELINED = 100
"""Requests that may wait on a connection for the answers to those before them."""

BODY_WINDOW_BYTES = 16 * 1024
"""A body must go on by so much, or end, in every `request_body_timeout`."""

WRITE_TIMEOUT = 120.0
"""Seconds that a client may leave an answer unread."""

LINGER_SECONDS = 5.0
"""What a refused client still sends is read for so long: closing on unread data would take the answer from it."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    server_state: Connections
    _deadline = math.inf
    """`loop.time()` at which the client has taken too long over what it is sending."""
    _write_deadline = math.inf
    """`loop.time()` at which it has taken too long over what it is to read."""
    _crowded = False
    _in_head = False
    _in_body = False
    _refused = False
    _heard = False
    _silent_bytes = 0
    """Received since the parser last had something to report."""
    _head_bytes = 0
    _window_bytes = 0
    """Of the body, since `_deadline` was set."""
    _without_upgrade: bytes | None = None
    _exchange: Exchange | None = None
    """Whose body comes, if it is answered without the application."""
    _first = b""
    """The first bytes of a request, if its head may be worth remembering."""
    _held: bytes | None = None
    """The beginning of a request that waits for its turn."""

    # The connection

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        self.leaving: set[Callable[[], object]] = set()
        now = self.loop.time()
        self._deadline = now + self.server_state.limits.head_timeout
        match self.server_state.admit(self, now):
            case Admission.CROWDED:
                self._crowded = True
                self._deadline = now + LINGER_SECONDS
                self.app = self.server_state.answer_probes_alone(self.app)
            case Admission.REFUSED:
                self._refuse(self.server_state.full())
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It left, or was left."""
        super().connection_lost(exc)
        for leave in list(self.leaving):
            leave()
        self._held = None
        self.server_state.forget(self)

    def eof_received(self) -> None:
        """It sends no more: taken for leaving, as clients that wait for an answer do not do it."""

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + WRITE_TIMEOUT

    def resume_writing(self) -> None:
        """It caught up."""
        super().resume_writing()
        self._write_deadline = math.inf

    def expire(self, now: float) -> None:
        """Give the connection up if its time is over. Called every second."""
        if self.transport.is_closing():
            # Closed but not lost: there is an answer that the client does not read.
            if self._write_deadline is math.inf:
                self._write_deadline = now + LINGER_SECONDS
            elif now >= self._write_deadline:
                self.transport.abort()
        elif now >= self._write_deadline:
            self.transport.abort()
        elif now >= self._deadline:
            self._expire_reading(now)

    def _expire_reading(self, now: float) -> None:
        limits = self.server_state.limits
        if self._in_body and not self.cycle.response_complete:
            if (
                self._window_bytes >= BODY_WINDOW_BYTES
                or self.flow.read_paused  # it is we who are slow
                or self.cycle.waiting_for_100_continue
            ):
                self._window_bytes = 0
                self._deadline = now + limits.body_timeout
            else:
                message = f"The request's body did not go on for {limits.body_timeout:g} seconds."
                self._refuse(ApiError(408, message, code="request_timeout"))
        elif self._in_head:
            message = f"The request's head was not complete after {limits.head_timeout:g} seconds."
            self._refuse(ApiError(408, message, code="request_timeout"))
        else:
            self.transport.close()

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless the client has been refused. A request waits for its turn; a probe does not."""
        if self._held is not None:
            self._held += data
            if len(self._held) > HELD_BYTES:
                self.flow.pause_reading()
        elif self._refused:
            return
        elif self.server_state.idle.pop(self, None) is None:
            self._parse(data)
        elif data.startswith(PROBE_HEADS):
            self._begin(data)
        else:
            size = min(1 + len(data) // BYTES_PER_SHARE, WHOLE) if data.startswith(LIGHT_HEADS) else WHOLE
            if self.server_state.entrance.try_enter(size):
                self._begin(data)
            else:
                self._held = data
                self._deadline = math.inf
                self.server_state.entrance.call_in_turn(self._begin_held, size)

    def _begin_held(self) -> None:
        data, self._held = self._held, None
        if data is not None and not self.transport.is_closing():
            self.flow.resume_reading()
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        """The first bytes of a request."""
        if not self._crowded:
            if data.startswith(LIGHT_HEADS):
                self._deadline = math.inf
                direct = self.server_state.direct
                if direct is not None and (exchange := direct.recall(self, data)) is not None:
                    exchange.on_end()
                    return
                self._first = data
            self._deadline = self.loop.time() + self.server_state.limits.head_timeout
        self._parse(data)
        self._first = b""

    def _parse(self, data: bytes) -> None:
        try:
            start = 0
            while start < len(data):
                self._heard = False
                # A body is passed on as it comes: to cut it into small pieces would copy it several times.
                end = len(data) if self._in_body else start + PIECE_BYTES
                piece = data if start == 0 and end >= len(data) else data[start:end]
                self._feed(piece)
                self._silent_bytes = 0 if self._heard else self._silent_bytes + len(piece)
                if self._silent_bytes > MAX_HEAD_BYTES:
                    raise _head_too_large()
                start = end
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        except ApiError as error:
            self._refuse(error)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The parser takes what follows for the other protocol. We speak none (RFC 9110, 7.8: an Upgrade may be
                # ignored), so the request is parsed again as one that does not offer it.
                head, self._without_upgrade = self._without_upgrade, None
                assert head is not None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data = head + data[upgrade.args[0] :]

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope[LEAVING_KEY] = self.leaving  # type: ignore[literal-required]
        self._in_head = self._heard = True
        self._head_bytes = 0
        if self.server_state.idle.pop(self, None) is not None:  # the one before was answered while this one was there
            self._deadline = self.loop.time() + self.server_state.limits.head_timeout

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        super().on_url(url)
        self._heard = True
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers, or of its trailers, which nobody reads: they come too late to be checked."""
        self._heard = True
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()
        if not self._in_body:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            if len(self.headers) > MAX_HEADERS:
                raise ApiError(431, f"The request has more than {MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:
        """Its headers are complete: the application is called, or the request queued."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ApiError(501, "This server is not a proxy: it does not take CONNECT.")
            self._without_upgrade = self._head_without_upgrade()
            return
        self._check_host()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise invalid(f"More than {MAX_PIPELINED} requests were sent ahead of their answers.")
        self._in_head, self._in_body = False, True
        self._window_bytes = 0
        self._deadline = self.loop.time() + self.server_state.limits.body_timeout
        if not self._answer_directly():
            super().on_headers_complete()
        if self._crowded:
            self.cycle.keep_alive = False

    def _answer_directly(self) -> bool:
        """Answer without the application, if that is possible."""
        direct = self.server_state.direct
        if direct is None or self._crowded or not (self.cycle is None or self.cycle.response_complete):
            return False
        first, self._first = self._first, b""
        self._exchange = direct.begin(self, first)
        if self._exchange is None:
            return False
        self.cycle = self._exchange  # type: ignore[assignment]
        return True

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._heard = True
        self._window_bytes += len(body)
        if self._exchange is None:
            super().on_body(body)
        else:
            self._exchange.on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._without_upgrade is None:
            self._in_body = False
            answered = self.cycle.response_complete
            self._deadline = self.loop.time() + self.timeout_keep_alive if answered else math.inf
            exchange, self._exchange = self._exchange, None
            if exchange is None:
                super().on_message_complete()
            else:
                exchange.on_end()

    def on_response_complete(self) -> None:
        """A request is answered."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        now = self.loop.time()
        if self._in_body:  # answered early; what is left of the body is read and dropped
            self._deadline = now + self.server_state.limits.body_timeout
        elif self._in_head:
            self._deadline = now + self.server_state.limits.head_timeout
        elif self.cycle.response_complete:
            self.server_state.idle[self] = now
            self._deadline = now + self.timeout_keep_alive  # a timer for each request would cost more

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _check_host(self) -> None:
        """Every request names one host (RFC 9112, 3.2), in its target if that is a whole URL; HTTP/1.0 need not."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise invalid(f"An HTTP/1.1 request has exactly one Host header; this one has {len(hosts)}.")
        if not self.url.startswith(b"/") and (absolute := _ABSOLUTE.match(self.url)):
            self.url = absolute["rest"] if absolute["rest"].startswith(b"/") else b"/" + absolute["rest"]
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers.append((b"host", absolute["authority"]))

    # Refusals below the routes

    def _refuse(self, error: ApiError) -> None:
        """Answer what was sent last with an error, and close. What still arrives is not parsed."""
        self._refused = True
        cycle = self.cycle
        earlier = bool(self.pipeline) or (cycle is not None and not cycle.response_complete and not self._in_body)
        if earlier or (self._in_body and cycle.response_started) or self.transport.is_closing():
            self.transport.close()  # an error now would be read as part of another answer
            return
        if self._in_body:  # the application waits for the rest
            cycle.disconnected = True
            cycle.message_event.set()
        body = error_below_routes(error, getattr(self, "url", b"").decode("latin-1"))
        fields = {
            **(error.headers or {}),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = b"".join([b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in fields.items()])
        self.transport.write(STATUS_LINE[error.status_code] + head + b"\r\n" + body)
        self.flow.resume_reading()
        self.transport.write_eof()
        self._in_head = self._in_body = False
        self._deadline = self.loop.time() + LINGER_SECONDS

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's way to refuse."""
        self._refuse(invalid(msg))


_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)


def _head_too_large() -> ApiError:
    return ApiError(431, f"The request's headers are larger than {MAX_HEAD_BYTES:,} bytes.")


def _reason(error: httptools.HttpParserError) -> ApiError:
    """Why the parser gave up, for the client."""
    cause = error.__context__
    if isinstance(cause, ApiError):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
        cause, httptools.HttpParserError | UnicodeError
    ):
        log.error("a request's head could not be handled", exc_info=cause)
        return internal()
    if "HTTP version" in str(error) or "PRI" in str(error):
        return ApiError(505, "This server speaks HTTP/1.1, not HTTP/2 without negotiation and no later version.")
    return invalid(f"Invalid HTTP request: {error or 'its head cannot be read'}.")
