"""A call of a method: its messages in and out, its deadline, its end."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from octavo.logs import log_info
from octavo.server.body import INLINE_BYTES
from octavo.server.errors import ApiError
from octavo.server.grpc.framing import PREFIX, Message, MessageReader, total, whole_message
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

HEAD_PREFIX = frames.prefix(len(HEAD), frames.HEADERS, frames.END_HEADERS)
END_PREFIX = frames.prefix(len(TRAILERS_OK), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)
"""Of the frames before and behind the messages of an answer."""

JOINED_BYTES = 16 * 1024
"""Messages up to this size are copied once more, to be sent in one piece."""

MESSAGES_WAITING = 16
"""Of a stream: more than so many that nobody has taken, and the client has to wait."""

_numbers = count(1)

Unary = Callable[["Call", Buffer], Sequence[Buffer] | None]
"""Answers a message with one, in any number of pieces; None says that this is done later, with `Call.answer` or
`Call.fail`."""

Streaming = Callable[["Call"], Awaitable[None]]
"""Takes messages and sends messages, as they come."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a path stands for.

    Attributes:
        unary, streaming: one of them answers. open: whether it needs no key. logged: whether calls are.
        works: whether a server that is shutting down refuses it.
        api: the part of the protocol that it belongs to, if any, see `octavo.server.restrictions`.
    """

    unary: Unary | None = None
    streaming: Streaming | None = None
    open: bool = False
    logged: bool = True
    works: bool = False
    api: str = ""


class Work(Protocol):
    """What is done for a call."""

    def end(self) -> None:
        """The call has ended, whoever ended it."""


class Call(Stream):
    """A call.

    Attributes:
        started: `time.perf_counter()` when it came. deployment: the name of what answers, if anything does.
        work: what is done for it elsewhere.
    """

    head: CallHead
    deployment = ""
    work: Work | None = None
    _method: Method | None = None
    _reader: MessageReader | None = None
    _message: Message | None = None
    _messages: deque[Message] | None = None
    _waiter: asyncio.Future[None] | None = None
    _task: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.Lock | None = None
    _received = _sent = _held_bytes = 0
    _head_sent = _takes_no_more = False
    _error = ""

    def __init__(self, calls: "Calls", connection: Connection, number: int, head: CallHead) -> None:
        super().__init__(connection, number, head)
        self.started = time.perf_counter()
        self._calls = calls

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
        if self.head.timeout is not None:
            self._timer = self.connection.loop.call_later(self.head.timeout, self._expire)
        if method.streaming is not None:
            self._messages = deque()
            self._calls.follow(self)
            self.start(self._stream(method.streaming))

    def on_data(self, data: Buffer) -> None:
        """Messages come."""
        try:
            if self._reader is None:
                if len(data) <= self._calls.inline_bytes and (message := whole_message(data)):
                    self._take((message,))
                    return
                self._reader = MessageReader(self.head.encoding, self._calls.max_bytes, self._hold)
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
            message, self._message = self._message, None
            self._calls.in_flight.join(self)
            if message.encoding:
                self.start(self._unpack(message))
            else:
                self._ask(message.data)

    def on_reset(self) -> None:
        """The client has cancelled the call, or gone."""
        self._end(Status.CANCELLED)
        if self._task is not None:
            self._task.cancel()

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
                await self._send(buffers)

    def answer(self, buffers: Sequence[Buffer]) -> None:
        """Send the one message of a method that has one, and with it the end."""
        if self.closed:
            return
        if self._send_now(buffers, self._trailers()):
            self._finish()
        else:
            self.start(self._send_all(buffers))

    async def _send_all(self, buffers: Sequence[Buffer]) -> None:
        await self._send(buffers, self._trailers())
        if not self.closed:
            self._finish()

    async def _send(self, buffers: Sequence[Buffer], end: bytes = b"") -> None:
        """Send a message, and the frame behind it, as the client takes it."""
        if not self._send_now(buffers, end):
            size, head = total(buffers), self._answer_head()
            self._head_sent = True
            self._sent += size
            await self.connection.peer.send(self, [PREFIX.pack(False, size), *buffers], head, end)

    def _send_now(self, buffers: Sequence[Buffer], end: bytes) -> bool:
        """The same if the client takes it at once. Returns whether it does."""
        size, peer = total(buffers), self.connection.peer
        length = size + PREFIX.size
        prefix = PREFIX.pack(False, size)
        before = self._answer_head()
        if size > JOINED_BYTES:
            sent = peer.send_now(self, [prefix, *buffers], before, end)
        elif sent := peer.take(self, length):
            peer.write(b"".join((before, frames.head(length, frames.DATA, 0, self.id), prefix, *buffers, end)))
        if sent:
            self._head_sent = True
            self._sent += size
        return sent

    def _answer_head(self) -> bytes:
        """The frame before the first message; nothing before another one."""
        return b"" if self._head_sent else HEAD_PREFIX + self.id.to_bytes(4, "big") + HEAD

    def _trailers(self) -> bytes:
        return END_PREFIX + self.id.to_bytes(4, "big") + TRAILERS_OK

    def _finish(self) -> None:
        """All has been sent."""
        self.connection.finish(self)
        self._end(Status.OK)

    def fail(self, error: BaseException) -> None:
        """End with an error, whatever was sent before it. One that is no RpcError is a defect of ours."""
        if not isinstance(error, RpcError):
            log.error("%s failed", self.head.path, exc_info=error)
            error = RpcError(Status.INTERNAL, "The server had an error while processing this request.")
        if self.closed:
            return
        self._error = error.message
        block = error.trailers() if self._head_sent else HEAD + error.trailers()
        flags = frames.END_HEADERS | frames.END_STREAM
        self.connection.peer.write(frames.frame(frames.HEADERS, flags, self.id, block))
        self.connection.finish(self)
        self._end(error.status)

    def cancel(self) -> None:
        """End because the server does."""
        self._give_up(self._calls.shutting_down())

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

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes time, which answers, or raises an error to fail with."""
        self._task = self.connection.loop.create_task(work)
        self._task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # otherwise than by what has ended the call
            self.cancel()
        elif (error := task.exception()) is not None:
            self.fail(error)

    def _ask(self, data: Buffer) -> None:
        assert self._method is not None
        assert self._method.unary is not None
        try:
            answer = self._method.unary(self, data)
        except Exception as error:
            self.fail(error)
        else:
            if answer is not None:
                self.answer(answer)

    async def _unpack(self, message: Message) -> None:
        self._ask((await self._read(message)).data)

    async def _stream(self, streaming: Streaming) -> None:
        await streaming(self)
        if self._takes_no_more and not self.ended:
            raise self._calls.shutting_down()
        if not self.closed:
            self.connection.peer.write(self._answer_head() + self._trailers())
            self._finish()

    def _end(self, status: Status) -> None:
        """Nothing is sent any more."""
        self._message = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held_bytes:
            self._calls.bodies.release(self._held_bytes)
            self._held_bytes = 0
        if self.work is not None:
            self.work.end()
            self.work = None
        self._calls.leave(self)
        self._note(status)

    def _note(self, status: Status) -> None:
        """Write a line of the log, one for each call."""
        if self._method is not None and not self._method.logged:
            return
        milliseconds = (time.perf_counter() - self.started) * 1e3
        to = self.deployment
        bodies = f", {self._received} bytes to and {self._sent} bytes from {to}" if to else ""
        name = self.head.request_id or f"{self._calls.name}{next(_numbers):08x}"
        reason = f": {one_line(self._error, MAX_REASON)}" if self._error else ""
        log_info(
            access_log,
            f"gRPC {self.head.label} {status._name_} {milliseconds:.1f} ms{bodies}, request {name}{reason}",
        )
