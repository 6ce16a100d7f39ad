"""A call of a method: its messages in and out, its deadline, its end."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from octavo.server.body import INLINE_BYTES
from octavo.server.errors import ApiError
from octavo.server.grpc.framing import PREFIX, Message, MessageReader, total
from octavo.server.grpc.head import CallHead
from octavo.server.grpc.status import TRAILERS_OK, RpcError, Status
from octavo.server.http2 import frames
from octavo.server.http2.connection import Connection
from octavo.server.http2.stream import Buffer, Stream
from octavo.server.middleware import MAX_REASON
from octavo.server.offload import off_loop
from octavo.server.one_line import one_line

if TYPE_CHECKING:
    from octavo.server.grpc.calls import Calls

log = logging.getLogger("octavo.server")
access_log = logging.getLogger("octavo.access")

HEAD = b"\x88" + frames.literals((b"content-type", b"application/grpc"))
"""Of an answer; the first byte is `:status: 200` (RFC 7541, appendix A)."""

JOINED_BYTES = 16 * 1024
"""Messages up to this size are copied once more, to be sent in one piece."""

MESSAGES_WAITING = 16
"""Of a stream: more than so many that nobody has taken, and the client has to wait."""

_numbers = count(1)

Unary = Callable[["Call", Buffer], Awaitable[Sequence[Buffer]]]
"""Answers a message with one, in any number of pieces."""

Streaming = Callable[["Call"], Awaitable[None]]
"""Takes messages and sends messages, as they come."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a path stands for.

    Attributes:
        unary, streaming: one of them answers. open: whether it needs no key. logged: whether calls are.
        works: whether a server that is shutting down refuses it.
    """

    unary: Unary | None = None
    streaming: Streaming | None = None
    open: bool = False
    logged: bool = True
    works: bool = False


class Call(Stream):
    """A call.

    Attributes:
        started: `time.perf_counter()` when it came. deployment: the name of what answers, if anything does.
    """

    __slots__ = (
        *("_calls", "_error", "_head_sent", "_held_bytes", "_message", "_messages", "_method", "_noted", "_reader"),
        *("_sending", "_takes_no_more", "_task", "_timer", "_waiter", "deployment", "started"),
        *("_received", "_sent"),
    )
    head: CallHead

    def __init__(self, calls: "Calls", connection: Connection, number: int, head: CallHead) -> None:
        super().__init__(connection, number, head)
        self.started = time.perf_counter()
        self.deployment = ""
        self._received = self._sent = 0
        self._calls = calls
        self._method: Method | None = None
        self._reader: MessageReader | None = None
        self._message: Message | None = None
        self._messages: deque[Message] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Lock | None = None
        self._head_sent = False
        self._held_bytes = 0
        self._noted = False
        self._takes_no_more = False
        self._error = ""

    @property
    def waits(self) -> bool:
        """A call whose messages are a stream may be silent for as long as it likes, but not within a message."""
        return not self.ended and (self._messages is None or (self._reader is not None and self._reader.inside > 0))

    @property
    def remaining(self) -> float | None:
        """Seconds that the client goes on waiting; None for ever."""
        timeout = self.head.timeout
        return None if timeout is None else max(timeout - (time.perf_counter() - self.started), 1e-3)

    # What comes

    def on_begin(self) -> None:
        """Find out what is called, and whether it may be."""
        if self.head.refusal:
            self._refuse_http()
            return
        try:
            method = self._method = self._calls.admit(self.head)
        except RpcError as error:
            self.fail(error)
            return
        self._reader = MessageReader(self.head.encoding, self._calls.max_bytes, self._hold)
        if self.head.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(self.head.timeout, self._expire)
        if method.streaming is not None:
            self._messages = deque()
            self._task = asyncio.create_task(self._run(method))
            self._calls.follow(self, self._task)

    def on_data(self, data: Buffer) -> None:
        """Messages come."""
        assert self._reader is not None
        try:
            self._take(self._reader.feed(data))
        except RpcError as error:
            self._give_up(error)

    def room(self) -> memoryview | None:
        """Where the next bytes of a long message go."""
        return None if self._reader is None else self._reader.room

    def on_data_there(self, size: int) -> None:
        """They have."""
        assert self._reader is not None
        try:
            self._take(self._reader.filled(size))
        except RpcError as error:
            self._give_up(error)

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._received += message.size
            if self._messages is not None:
                self._messages.append(message)
                self.held = len(self._messages) > MESSAGES_WAITING
                self._wake()
            elif self._message is None:
                self._message = message
            else:
                raise RpcError(Status.INVALID_ARGUMENT, "the method takes one message, and there are more")

    def on_end(self) -> None:
        """All messages have come."""
        if self._messages is not None:
            self._wake()
        elif self._message is None:
            self._give_up(RpcError(Status.INVALID_ARGUMENT, "the method takes one message, and there is none"))
        else:
            assert self._method is not None
            self._task = self._calls.in_flight.start(self._run(self._method))

    def on_reset(self) -> None:
        """The client has cancelled the call, or gone."""
        self._note(Status.CANCELLED)
        if self._task is not None:
            self._task.cancel()
        self._clean_up()

    def on_timeout(self) -> None:
        """The client does not send what it has begun."""
        self._give_up(RpcError(Status.CANCELLED, "the rest of the request did not come in time"))

    def _hold(self, size: int) -> None:
        """Account for a message, if it is not small: all of them together are bounded."""
        if size > INLINE_BYTES:
            try:
                self._calls.bodies.hold(size)
            except ApiError as error:
                raise RpcError(Status.UNAVAILABLE, str(error)) from None
            self._held_bytes += size

    def release(self, message: Message) -> None:
        """A message of a stream has been dealt with, before the stream's end."""
        if INLINE_BYTES < message.size <= self._held_bytes:
            self._calls.bodies.release(message.size)
            self._held_bytes -= message.size

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Those of a stream, as they come, and not compressed any more."""
        assert self._messages is not None
        while True:
            while self._messages:
                yield await self._read(self._messages.popleft())
                if self.held and len(self._messages) <= MESSAGES_WAITING:
                    self.held = False
                    self.connection.give_credit(self)
            if self.ended or self._takes_no_more:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def message(self) -> Buffer:
        """The one of a method that takes one, and answers with a stream."""
        async with aclosing(self.messages()) as messages:
            async for message in messages:
                return message.data
        raise RpcError(Status.INVALID_ARGUMENT, "the method takes one message, and there is none")

    @property
    def ending(self) -> bool:
        """Whether the server is shutting down."""
        return self._takes_no_more

    async def _read(self, message: Message) -> Message:
        if not message.encoding:
            return message
        return Message(await off_loop(message.unpacked, self._calls.max_bytes), "", message.size)

    def take_no_more(self) -> None:
        """The server is shutting down: a stream ends when the messages that have come are answered."""
        self._takes_no_more = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What is answered

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send a message of a stream, one after the other."""
        if self._sending is None:
            self._sending = asyncio.Lock()
        async with self._sending:
            if not self.closed:
                await self._send(buffers, b"")

    async def _send(self, buffers: Sequence[Buffer], end: bytes) -> None:
        """Send a message, and the frame behind it."""
        peer, size = self.connection.peer, total(buffers)
        head = b"" if self._head_sent else frames.head(len(HEAD), frames.HEADERS, frames.END_HEADERS, self.id) + HEAD
        self._head_sent = True
        self._sent += size
        prefix = PREFIX.pack(False, size)
        if size <= JOINED_BYTES and peer.takes(self, size + len(prefix)):
            peer.write_data(self, b"".join((prefix, *buffers)), head, end)
        else:
            await peer.send_data(self, [prefix, *buffers], head, end)

    def fail(self, error: RpcError) -> None:
        """End with an error, whatever was sent before it."""
        if self.closed:
            return
        self._error = error.message
        block = error.trailers() if self._head_sent else HEAD + error.trailers()
        flags = frames.END_HEADERS | frames.END_STREAM
        self.connection.peer.write(frames.frame(frames.HEADERS, flags, self.id, block))
        self.connection.finish(self)
        self._note(error.status)
        self._clean_up()

    def _give_up(self, error: RpcError) -> None:
        """End with an error while there may be work."""
        self.fail(error)
        if self._task is not None:
            self._task.cancel()

    def _expire(self) -> None:
        self._give_up(RpcError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def _refuse_http(self) -> None:
        """This is no call: browsers and others get a status of HTTP."""
        block = frames.literals((b":status", str(self.head.refusal).encode()))
        flags = frames.END_HEADERS | frames.END_STREAM
        self.connection.peer.write(frames.frame(frames.HEADERS, flags, self.id, block))
        self.connection.finish(self)

    # The work

    async def _run(self, method: Method) -> bytes:
        """Answer, and say how it ended. The answer is written here: there is nothing to return."""
        try:
            if method.unary is not None:
                assert self._message is not None
                message, self._message = self._message, None
                answer = await method.unary(self, (await self._read(message)).data)
                await self._send(answer, self._end())
            else:
                assert method.streaming is not None
                await method.streaming(self)
                if self._takes_no_more and not self.ended:
                    raise self._calls.shutting_down()
                if not self.closed:
                    self._write_end()
            if not self.closed:
                self.connection.finish(self)
                self._note(Status.OK)
        except RpcError as error:
            self.fail(error)
        except asyncio.CancelledError:  # otherwise it is closed: by the client, or its deadline
            self.fail(self._calls.shutting_down())
        except Exception:
            log.exception("%s failed", self.head.path)
            self.fail(RpcError(Status.INTERNAL, "The server had an error while processing this request."))
        finally:
            self._clean_up()
        return b""

    def _end(self) -> bytes:
        flags = frames.END_HEADERS | frames.END_STREAM
        return frames.head(len(TRAILERS_OK), frames.HEADERS, flags, self.id) + TRAILERS_OK

    def _write_end(self) -> None:
        peer = self.connection.peer
        if not self._head_sent:
            self._head_sent = True
            peer.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.id, HEAD))
        peer.write(self._end())

    def _clean_up(self) -> None:
        self._message = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held_bytes:
            self._calls.bodies.release(self._held_bytes)
            self._held_bytes = 0

    def _note(self, status: Status) -> None:
        """Write a line of the log, one for each call."""
        if self._noted or (self._method is not None and not self._method.logged):
            return
        self._noted = True
        access_log.info(
            "gRPC %s %s %.1f ms%s, request %s%s",
            self.head.label,
            status.name,
            (time.perf_counter() - self.started) * 1e3,
            f", {self._received} bytes to and {self._sent} bytes from {self.deployment}" if self.deployment else "",
            self.head.request_id or f"{self._calls.name}{next(_numbers):08x}",
            f": {one_line(self._error, MAX_REASON)}" if self._error else "",
        )
