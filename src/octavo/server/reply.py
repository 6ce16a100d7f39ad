"""Answers that take time: given up when the client leaves, and no status line before there is something to say."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.chunks import escape_separators
from octavo.server.errors import ApiError, error_body, internal, unavailable
from octavo.server.request_context import RequestContext

log = logging.getLogger("octavo.server")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
]


class InFlight:
    """The answers being worked out, and whether new ones may begin."""

    def __init__(self) -> None:
        self.draining = False
        self._work: set[asyncio.Task[bytes | None]] = set()

    def admit(self) -> None:
        """Raise the error for a request that comes after the signal to stop."""
        if self.draining:
            raise unavailable("The server is shutting down.", retry_after=1.0)

    def start(self, work: Coroutine[Any, Any, bytes | None]) -> asyncio.Task[bytes | None]:
        """Work something out, counted until it ends."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def drain(self, seconds: float) -> None:
        """Wait until all work has ended, then cancel what is left after so many seconds."""
        self.draining = True
        if self._work:
            await asyncio.wait(self._work, timeout=seconds)
        self.cancel()

    def cancel(self) -> None:
        """End all work now; its clients get an error."""
        for task in self._work:
            task.cancel()


class EventStream:
    """A response of server-sent events. The status line goes out with the first of them, and not before.

    Args:
        ping_seconds: silence after which a comment keeps the connection alive; 0 is never.
    """

    def __init__(self, send: Send, ping_seconds: float) -> None:
        self.started = False
        self._send = send
        self._ping_seconds = ping_seconds
        self._last_write = 0.0
        self._pinger: asyncio.Task[None] | None = None

    async def write(self, events: bytes) -> None:
        """Send events in one piece."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS.copy()})
            if self._ping_seconds > 0:
                self._pinger = asyncio.create_task(self._ping())
        self._last_write = time.monotonic()
        await self._send({"type": "http.response.body", "body": escape_separators(events), "more_body": True})

    async def fail(self, error: Exception) -> None:
        """Tell the client what went wrong after the status line, and end."""
        if not isinstance(error, ApiError):
            log.error("a stream failed", exc_info=error)
            error = internal()
        await self.write(b"data: " + orjson.dumps(error_body(error)) + b"\n\n")
        await self.close()

    async def close(self) -> None:
        """End the response."""
        self.stop_pings()
        await self._send({"type": "http.response.body", "body": DONE, "more_body": False})

    def stop_pings(self) -> None:
        """Nothing more will be written."""
        if self._pinger is not None:
            self._pinger.cancel()

    async def _ping(self) -> None:
        while True:
            silent = time.monotonic() - self._last_write
            if silent >= self._ping_seconds:
                await self.write(PING)
                silent = 0.0
            await asyncio.sleep(self._ping_seconds - silent)


Work = Callable[[EventStream], Coroutine[Any, Any, bytes | None]]
"""Works out an answer: returns a JSON body, or None after it has written the answer to the stream."""


class Reply(Response):
    """A response that is worked out while the client waits. An error before its first byte is an error response."""

    def __init__(self, work: Work, in_flight: InFlight, ping_seconds: float) -> None:
        super().__init__()
        self._work = work
        self._in_flight = in_flight
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Race the work against the client's patience."""
        stream = EventStream(send, self._ping_seconds)
        work = self._in_flight.start(self._work(stream))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.debug("the client of request %s left", RequestContext.of(scope).request_id)
                return
            if work.cancelled():
                raise unavailable("The server is shutting down.", retry_after=1.0)
            body = work.result()
            if body is None:
                await stream.close()
            else:
                await Response(body, media_type="application/json")(scope, receive, send)
        except Exception as error:
            if not stream.started:
                raise
            await stream.fail(error)
        finally:
            stream.stop_pings()
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
