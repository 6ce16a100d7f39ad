"""Answers that take time: given up when the client leaves, and no status line before there is something to say."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.dialects.dialect import ErrorWriter
from octavo.server.errors import ApiError, internal, unavailable
from octavo.server.request_context import CLIENT_GONE, RequestContext

log = logging.getLogger("octavo.server")

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
]


ENDING_SECONDS = 2.0
"""For work that is cancelled at the server's end."""


class Ongoing(Protocol):
    """What is being worked out: a task, or something that ends by itself later."""

    def cancel(self) -> object:
        """End it; its client gets an error."""
        ...


class InFlight:
    """The answers being worked out, and whether new ones may begin."""

    def __init__(self) -> None:
        self.draining = False
        self._work: set[Ongoing] = set()
        self._followers: set[Ongoing] = set()
        self._ended = asyncio.Event()

    def admit(self) -> None:
        """Raise the error for a request that comes after the signal to stop."""
        if self.draining:
            raise unavailable("The server is shutting down.", retry_after=1.0)

    def start(self, work: Coroutine[Any, Any, bytes], *, follows: bool = False) -> asyncio.Task[bytes]:
        """Work something out, counted until it ends.

        Args:
            follows: it ends soon after other work has, and says how that ended: it is not cancelled together with it.
        """
        task = asyncio.create_task(work)
        if follows:
            self._followers.add(task)
        else:
            self._work.add(task)
        task.add_done_callback(self.leave)
        return task

    def join(self, work: Ongoing) -> None:
        """Count what a request does itself, until it leaves."""
        self._work.add(work)

    def leave(self, work: Ongoing) -> None:
        """It has ended."""
        self._work.discard(work)
        self._followers.discard(work)
        if self.draining:
            self._ended.set()

    async def drain(self, seconds: float) -> None:
        """Wait until all work has ended, then cancel what is left after so many seconds."""
        self.draining = True
        await self._wait(seconds)
        self.cancel()
        await self._wait(ENDING_SECONDS)  # they say how they ended
        for work in self._followers:
            work.cancel()

    def cancel(self) -> None:
        """End all work now; its clients get an error."""
        for work in list(self._work):
            work.cancel()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._work or self._followers:
                    self._ended.clear()
                    await self._ended.wait()


class EventStream:
    """A response of server-sent events. The status line goes out with the first of them, and not before.

    Args:
        ping: what keeps a silent connection alive. ping_seconds: after so long; 0 is never.
    """

    def __init__(self, send: Send, ping: bytes, ping_seconds: float) -> None:
        self.started = False
        self._send = send
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._last_write = time.monotonic()
        self._writing = False
        self._pinger: asyncio.Task[None] | None = None
        self._ping_sent: asyncio.Event | None = None

    async def write(self, events: bytes) -> None:
        """Send events in one piece."""
        self._writing = True
        if self._ping_sent is not None:  # one after the other: the first of both sends the status line
            await self._ping_sent.wait()
        if not self.started:
            await self._start()
        self._last_write = time.monotonic()
        await self._send({"type": "http.response.body", "body": escape_separators(events), "more_body": True})
        self._writing = False

    async def close(self, events: bytes) -> None:
        """Send the last events and end the response."""
        await self.stop_pings()
        if not self.started:
            await self._start()
        await self._send({"type": "http.response.body", "body": escape_separators(events), "more_body": False})

    def keep_alive(self, accepted: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write a ping whenever nothing was written for so long, before the first event too: but not while the request
        may still be refused, which the status line must tell.

        Args:
            accepted: returns when that is over.
        """
        if self._ping_seconds > 0:
            self._pinger = asyncio.create_task(self._ping_when_silent(accepted))

    async def stop_pings(self) -> None:
        """Nothing more is written but by the caller."""
        if self._pinger is not None:
            self._pinger.cancel()
            await asyncio.wait((self._pinger,))
            self._pinger = None

    async def _start(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS.copy()})
        self.started = True

    async def _ping_when_silent(self, accepted: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await accepted()
        while True:
            silent = 0.0 if self._writing else time.monotonic() - self._last_write
            if silent >= self._ping_seconds:
                self._ping_sent = asyncio.Event()
                try:
                    if not self.started:
                        await self._start()
                    await self._send({"type": "http.response.body", "body": self._ping, "more_body": True})
                finally:
                    self._ping_sent.set()
                    self._ping_sent = None
                self._last_write, silent = time.monotonic(), 0.0
            await asyncio.sleep(self._ping_seconds - silent)


def escape_separators(events: bytes) -> bytes:
    """Events whose JSON has U+0085, U+2028 and U+2029 escaped. Only LF and CR end a line of an event stream, but many
    clients split with something like `str.splitlines`. JSON itself escapes the others that it splits at."""
    if events.isascii():
        return events
    for raw, escaped in _SEPARATORS:
        if raw[0] in events:  # a single byte is found ten times as fast
            events = events.replace(raw, escaped)
    return events


_SEPARATORS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


Work = Callable[[EventStream], Coroutine[Any, Any, bytes]]
"""Works out an answer. Returns the last events of one that it writes to the stream, and else the whole body."""


class Reply(Response):
    """A response that is worked out while the client waits. An error before its first byte is an error response.

    Args:
        work: works out the answer. writer: what writes pings and errors. streamed: whether it comes as events.
        ping_seconds: see `EventStream`. follows: see `InFlight.start`.
    """

    def __init__(
        self,
        work: Work,
        writer: ErrorWriter,
        in_flight: InFlight,
        *,
        streamed: bool,
        ping_seconds: float,
        follows: bool = False,
    ) -> None:
        super().__init__()
        self._work = work
        self._writer = writer
        self._in_flight = in_flight
        self._streamed = streamed
        self._ping_seconds = ping_seconds
        self._follows = follows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Race the work against the client's patience."""
        self._in_flight.admit()
        stream = EventStream(send, self._writer.ping, self._ping_seconds)
        work = self._in_flight.start(self._work(stream), follows=self._follows)
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                RequestContext.of(scope).status = CLIENT_GONE
                return
            if work.cancelled():
                raise unavailable("The server is shutting down.", retry_after=1.0)
            if self._streamed:
                await stream.close(work.result())
            else:
                await Response(work.result(), media_type="application/json")(scope, receive, send)
        except Exception as error:
            await stream.stop_pings()
            if not stream.started:
                raise
            if not isinstance(error, ApiError):
                log.error("a stream failed", exc_info=error)
                error = internal()
            await stream.close(self._writer.error(error, RequestContext.of(scope).request_id))
        finally:
            await stream.stop_pings()
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
