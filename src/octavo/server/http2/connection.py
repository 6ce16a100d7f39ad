"""The server's end of a connection that speaks HTTP/2 (RFC 9113), once it is known that it does ("prior knowledge").

Of the whole protocol it lacks what servers need not do: it pushes nothing, and takes streams in the order in which they
come. What a client may take without giving (memory, attention) is bounded.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from struct import iter_unpack

import hpack

from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode, Setting
from octavo.server.http2.heads import MAX_HEAD, HeadReader
from octavo.server.http2.peer import Peer
from octavo.server.http2.stream import Application, Stream

MAX_BLOCK = 4 * MAX_HEAD
"""Bytes of frames other than DATA that belong together."""

CONTROL_FRAMES = 2000
"""A second, of those that ask for an answer, or for nothing."""

LINGER_SECONDS = 1.0
"""For a client to close a connection that is given up."""

WRITE_BUFFER = 2**20
"""Bytes of answers that the system has not taken, after which the client has to take some first."""

VIEWED_BYTES = 4096
"""Longer pieces of a request are not copied."""

NOT_HTTP2 = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nThis port speaks gRPC.\n"


class Broken(Exception):
    """The client does not keep to the protocol: the connection ends."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take.

    Attributes:
        streams: at once. window, stream_window: bytes that may be under way, together and of one request.
        frame: bytes of a frame. preface_timeout: seconds in which the connection must begin.
        body_timeout: seconds in which a request must go on.
    """

    streams: int = 1024
    window: int = 16 * 2**20
    stream_window: int = 4 * 2**20
    frame: int = 2**20
    preface_timeout: float = 20.0
    body_timeout: float = 30.0


class Connection(asyncio.Protocol):
    """A client.

    Args:
        on_open, on_close: told of this one.

    Attributes:
        peer: where to send things. idle_since: when the last stream ended; None while there is one.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        on_open: Callable[["Connection"], None],
        on_close: Callable[["Connection"], None],
    ) -> None:
        self.limits = limits
        self.now = 0.0
        self.idle_since: float | None = 0.0
        self._application = application
        self._on_open = on_open
        self._on_close = on_close
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._leaving = False
        self._hung_up = False
        self._greeted = False
        self._rest = b""
        self._heads = HeadReader(application)
        self._block: tuple[int, int, bytearray] | None = None
        """A head whose end has not come: its stream, its flags, its bytes."""
        self._credit = limits.window
        self._spent = 0
        self._in_data = False
        self._left = self._padding = 0
        self._receiver: Stream | None = None
        self._ends = False
        self._control_frames = 0
        self._control_since = 0.0

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Say what this end is like."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self.now = self.idle_since = self._loop.time()
        self.peer = Peer(transport)
        limits = self.limits
        transport.set_write_buffer_limits(WRITE_BUFFER)
        transport.write(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.streams,
                    Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
                    Setting.MAX_FRAME_SIZE: limits.frame,
                    Setting.MAX_HEADER_LIST_SIZE: MAX_HEAD,
                }
            )
            + frames.window_update(0, limits.window - frames.DEFAULT_WINDOW)
        )
        self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody hears the answers any more."""
        self._hung_up = True
        self._drop_streams()
        self._on_close(self)

    def pause_writing(self) -> None:
        """The client does not take what it is sent: nothing more is taken from it."""
        self.peer.pause()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It goes on."""
        self.peer.resume()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def leave(self) -> None:
        """Begin no other request, and close when those that there are have ended."""
        if not self._leaving and not self._hung_up:
            self._leaving = True
            self._transport.write(frames.goaway(self._last, ErrorCode.NO_ERROR))
            self._close_if_done()

    def abort(self) -> None:
        """Close at once."""
        self._transport.close()

    def expire(self, now: float) -> None:
        """Give up what does not go on."""
        if not self._greeted and now - self.now > self.limits.preface_timeout:
            self._transport.close()
        for stream in list(self._streams.values()):
            if stream.waits and now - stream.touched > self.limits.body_timeout:
                stream.on_timeout()

    def finish(self, stream: Stream) -> None:
        """The last frame of an answer has been written."""
        stream.closed = True
        if not stream.ended:  # of the request nothing more is wanted
            self._transport.write(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._forget(stream.id)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream."""
        if not stream.closed:
            stream.closed = True
            self._transport.write(frames.rst_stream(stream.id, code))
            self._forget(stream.id)

    def _drop_streams(self) -> None:
        self.peer.wake()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.closed = True
            stream.on_reset()

    def _forget(self, number: int) -> None:
        self._streams.pop(number, None)
        if not self._streams:
            self.idle_since = self._loop.time()
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._leaving and not self._streams:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close once the client does, or soon: to close on what it still sends would take the last answers from it."""
        if not self._transport.is_closing() and not self._hung_up:
            self._hung_up = True
            self._transport.write_eof()
            self._loop.call_later(LINGER_SECONDS, self._transport.close)

    # What comes

    def data_received(self, data: bytes) -> None:
        """Take the frames out of what has come."""
        if self._hung_up:
            return
        self.now = self._loop.time()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            at = self._consume(data)
        except Broken as failure:
            if self._greeted:
                self._transport.write(frames.goaway(self._last, failure.code, str(failure)))
            else:
                self._transport.write(NOT_HTTP2)
            self._drop_streams()
            self._hang_up()
            return
        if at < len(data):
            self._rest = data[at:]

    def _consume(self, data: bytes) -> int:
        """Take what is whole, and of DATA what there is. Returns how much that was."""
        at, end = 0, len(data)
        if not self._greeted:
            if not data.startswith(frames.PREFACE[:end]):
                raise Broken(ErrorCode.PROTOCOL_ERROR, "this is no HTTP/2")
            if end < len(frames.PREFACE):
                return 0
            self._greeted = True
            at = len(frames.PREFACE)
        while True:
            if self._in_data:
                at = self._take_data(data, at, end)
            if self._in_data or end - at < frames.HEADER.size:
                return at
            upper, lower, kind, flags, number = frames.HEADER.unpack_from(data, at)
            length, number = upper << 8 | lower, number & 0x7FFFFFFF
            begins = at + frames.HEADER.size
            if kind == frames.DATA and self._block is None:
                padded = flags & frames.PADDED
                if padded and end == begins:
                    return at
                self._begin_data(number, flags, length, data[begins] + 1 if padded and length else 0)
                at = begins + 1 if padded and length else begins
                continue
            if length > MAX_BLOCK:
                raise Broken(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, more than {MAX_BLOCK}")
            at = begins + length
            if at > end:
                return begins - frames.HEADER.size
            self._take(kind, flags, number, data[begins:at])

    def _begin_data(self, number: int, flags: int, length: int, padding: int) -> None:
        if length > self.limits.frame:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, more than {self.limits.frame}")
        if padding > length:
            raise Broken(ErrorCode.PROTOCOL_ERROR, "more padding than there is frame")
        stream = self._streams.get(number)
        if stream is None and (number > self._last or not number & 1):
            raise Broken(ErrorCode.PROTOCOL_ERROR, f"data of stream {number}, which has not begun")
        self._credit -= length
        if stream is not None:
            if stream.ended:
                raise Broken(ErrorCode.STREAM_CLOSED, f"data behind the end of stream {number}")
            stream.credit -= length
            stream.spent += length
            stream.touched = self.now
        if self._credit < 0 or (stream is not None and stream.credit < 0):
            raise Broken(ErrorCode.FLOW_CONTROL_ERROR, "more data than there is room for")
        self._spent += length
        self._ends = bool(flags & frames.END_STREAM)
        if length == padding and not self._ends:
            self._count_control_frame()
        self._in_data, self._receiver = True, stream
        self._left, self._padding = length - padding, max(padding - 1, 0)

    def _take_data(self, data: bytes, at: int, end: int) -> int:
        stream = self._receiver
        size = min(self._left, end - at)
        if size:
            if stream is not None and not stream.closed:
                whole = data if size <= VIEWED_BYTES else memoryview(data)
                stream.on_data(whole[at : at + size])
            self._left -= size
            at += size
        if self._left:
            return at
        size = min(self._padding, end - at)
        self._padding -= size
        at += size
        if not self._padding:
            self._end_data(stream)
        return at

    def _end_data(self, stream: Stream | None) -> None:
        self._in_data, self._receiver = False, None
        if self._spent > self.limits.window // 2:
            self._transport.write(frames.window_update(0, self._spent))
            self._credit += self._spent
            self._spent = 0
        if stream is None or stream.closed:
            return
        if self._ends:
            stream.ended = True
            stream.on_end()
        elif not stream.held:
            self.give_credit(stream)

    def give_credit(self, stream: Stream) -> None:
        """Let the client send more of a request, if it has sent much."""
        if stream.spent > self.limits.stream_window // 2 and not stream.closed and not stream.ended:
            self._transport.write(frames.window_update(stream.id, stream.spent))
            stream.credit += stream.spent
            stream.spent = 0

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A whole frame that is no DATA."""
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise Broken(ErrorCode.PROTOCOL_ERROR, "a frame within a head")
        match kind:
            case frames.HEADERS:
                self._take_headers(flags, number, payload)
            case frames.CONTINUATION:
                self._take_continuation(flags, number, payload)
            case frames.WINDOW_UPDATE:
                self._take_window_update(number, payload)
            case frames.RST_STREAM:
                self._take_reset(number, payload)
            case frames.SETTINGS:
                self._take_settings(flags, number, payload)
            case frames.PING:
                self._take_ping(flags, number, payload)
            case frames.GOAWAY:
                self._leaving = True
                self._close_if_done()
            case frames.PUSH_PROMISE:
                raise Broken(ErrorCode.PROTOCOL_ERROR, "clients push nothing")
            case _:  # PRIORITY, and what is not known here
                self._count_control_frame()

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        begin, end = 0, len(payload)
        if flags & frames.PADDED:
            begin, end = 1, end - (payload[0] if payload else 0)
        if flags & frames.WITH_PRIORITY:
            begin += 5
        if begin > end:
            raise Broken(ErrorCode.PROTOCOL_ERROR, "more padding than there is frame")
        block = payload[begin:end]
        if flags & frames.END_HEADERS:
            self._begin_stream(number, flags, block)
        else:
            self._block = (number, flags, bytearray(block))

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise Broken(ErrorCode.PROTOCOL_ERROR, "nothing to continue")
        self._count_control_frame()
        _, first_flags, block = self._block
        block += payload
        if len(block) > MAX_BLOCK:
            raise Broken(ErrorCode.ENHANCE_YOUR_CALM, f"a head of more than {MAX_BLOCK} bytes")
        if flags & frames.END_HEADERS:
            self._block = None
            self._begin_stream(number, first_flags, bytes(block))

    def _begin_stream(self, number: int, flags: int, block: bytes) -> None:
        try:
            head = self._heads.read(block)
        except hpack.OversizedHeaderListError:
            raise Broken(ErrorCode.ENHANCE_YOUR_CALM, f"a head of more than {MAX_HEAD} bytes") from None
        except hpack.HPACKError:
            raise Broken(ErrorCode.COMPRESSION_ERROR, "a head that cannot be read") from None
        if number in self._streams:
            self._take_trailers(self._streams[number], flags)
            return
        if not number & 1:
            raise Broken(ErrorCode.PROTOCOL_ERROR, f"stream {number} is none of a client's")
        if number <= self._last:
            raise Broken(ErrorCode.STREAM_CLOSED, f"stream {number} has ended")
        self._last = number
        if self._leaving:  # the client has been told, and begins it somewhere else
            return
        if len(self._streams) >= self.limits.streams:
            self._count_control_frame()
            self._transport.write(frames.rst_stream(number, ErrorCode.REFUSED_STREAM))
            return
        self.idle_since = None
        stream = self._streams[number] = self._application.begin(self, number, head)
        stream.on_begin()
        if flags & frames.END_STREAM and not stream.closed:
            stream.ended = True
            stream.on_end()

    def _take_trailers(self, stream: Stream, flags: int) -> None:
        if stream.ended or not flags & frames.END_STREAM:
            raise Broken(ErrorCode.PROTOCOL_ERROR, f"a second head of stream {stream.id}")
        stream.ended = True
        stream.on_end()

    def _take_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE has 4 bytes")
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        stream = self._streams.get(number)
        if number and stream is None:
            if number > self._last:
                raise Broken(ErrorCode.PROTOCOL_ERROR, f"stream {number} has not begun")
            return
        if not increment or not self.peer.enlarge(stream, increment):
            raise Broken(ErrorCode.FLOW_CONTROL_ERROR, f"a window cannot be enlarged by {increment}")

    def _take_reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM has 4 bytes")
        if number == 0 or number > self._last:
            raise Broken(ErrorCode.PROTOCOL_ERROR, f"stream {number} has not begun")
        self._count_control_frame()
        stream = self._streams.get(number)
        if stream is not None:
            stream.closed = True
            self.peer.wake()
            stream.on_reset()
            self._forget(number)

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & frames.ACK and payload):
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS are of 6 bytes each, on no stream")
        if flags & frames.ACK:
            return
        self._count_control_frame()
        for key, value in iter_unpack(">HI", payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW or not self.peer.set_initial_window(value, self._streams.values()):
                    raise Broken(ErrorCode.FLOW_CONTROL_ERROR, f"no window has {value} bytes")
            elif key == Setting.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                    raise Broken(ErrorCode.PROTOCOL_ERROR, f"no frame has {value} bytes")
                self.peer.max_frame = value
        self._transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _take_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, "a PING has 8 bytes, on no stream")
        if not flags & frames.ACK:
            self._count_control_frame()
            self._transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _count_control_frame(self) -> None:
        """Frames that cost the client nothing must not cost the server much."""
        self._control_frames += 1
        if self._control_frames > CONTROL_FRAMES:
            if self.now - self._control_since < 1.0:
                raise Broken(ErrorCode.ENHANCE_YOUR_CALM, f"more than {CONTROL_FRAMES} frames a second that say little")
            self._control_frames, self._control_since = 0, self.now
