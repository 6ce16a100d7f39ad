"""The server's end of a connection that speaks HTTP/2 (RFC 9113), once it is known that it does ("prior knowledge").

Of the whole protocol it lacks what servers need not do: it pushes nothing, and takes streams in the order in which they
come. What a client may take without giving (memory, attention) is bounded.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from struct import iter_unpack

import hpack

from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode, Setting
from octavo.server.http2.heads import MAX_HEAD, HeadReader
from octavo.server.http2.peer import Peer
from octavo.server.http2.reader import Broken, FrameReader
from octavo.server.http2.stream import Application, Buffer, Stream

CONTROL_FRAMES = 2000
"""A second, of those that ask for an answer, or for nothing."""

LINGER_SECONDS = 1.0
"""For a client to close a connection that is given up."""

WRITE_BUFFER = 2**20
"""Bytes of answers that the system has not taken, after which the client has to take some first."""

READ_BYTES = 64 * 1024
"""That are read at once, if it is not known where they go: of the data of a request that is long, more are."""

NOT_HTTP2 = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nThis port speaks gRPC.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take.

    Attributes:
        streams: at once. window, stream_window: bytes that may be under way, together and of one request.
        frame: bytes of a frame. preface_timeout: seconds in which the connection must begin.
        body_timeout: seconds in which a request must go on.
        max_age: seconds after which the connection takes no more requests. max_age_grace: after which those that there
            are then are given up.
    """

    streams: int = 1024
    window: int = 16 * 2**20
    stream_window: int = 4 * 2**20
    frame: int = 2**20
    preface_timeout: float = 20.0
    body_timeout: float = 30.0
    max_age: float = math.inf
    max_age_grace: float = math.inf


class Connection(asyncio.BufferedProtocol):
    """A client.

    Args:
        on_open, on_close: told of this one.
        read: of `READ_BYTES`, where what comes is read to. All connections of an event loop may share it.

    Attributes:
        loop: that it runs in. peer: where to send things.
        idle_since: when the last stream ended; None while there is one.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        on_open: Callable[["Connection"], None],
        on_close: Callable[["Connection"], None],
        read: memoryview,
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
        self._reader = FrameReader(self)
        self._read = read
        self._room: memoryview | None = None
        self._heads = HeadReader(application)
        self._credit = limits.window
        self._spent = 0
        self._receiver: Stream | None = None
        self._ends = False
        self._control_frames = 0
        self._control_since = 0.0

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for its first words."""
        self._transport = transport
        self.loop = asyncio.get_running_loop()
        self.now = self.idle_since = self._born = self.loop.time()
        self.peer = Peer(self.loop, transport, self._streams)
        transport.set_write_buffer_limits(WRITE_BUFFER)
        self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody hears the answers any more."""
        self._hung_up = True
        self.peer.drop()
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
            if not self._reader.greeted:
                self._transport.close()
                return
            self.peer.write(frames.goaway(self._last, ErrorCode.NO_ERROR))
            self._close_if_done()

    def abort(self) -> None:
        """Close at once."""
        self._transport.close()

    def expire(self, now: float) -> None:
        """Give up what does not go on."""
        if not self._reader.greeted and now - self.now > self.limits.preface_timeout:
            self._transport.close()
        age = now - self._born
        if age > self.limits.max_age:
            self.leave()
        if age > self.limits.max_age + self.limits.max_age_grace:
            self.abort()
        for stream in list(self._streams.values()):
            if stream.waits and now - stream.touched > self.limits.body_timeout:
                stream.on_timeout()

    def finish(self, stream: Stream) -> None:
        """The last frame of an answer has been written."""
        stream.closed = True
        if not stream.ended:  # of the request nothing more is wanted
            self.peer.write(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._forget(stream.id)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream."""
        if not stream.closed:
            stream.closed = True
            self.peer.write(frames.rst_stream(stream.id, code))
            self._forget(stream.id)

    def _drop_streams(self) -> None:
        self.peer.wake()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.closed = True
            stream.on_reset()

    def _forget(self, number: int) -> None:
        self._streams.pop(number, None)
        if not self._streams:
            self.idle_since = self.loop.time()
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._leaving and not self._streams:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close once the client does, or soon: to close on what it still sends would take the last answers from it."""
        if not self._transport.is_closing() and not self._hung_up:
            self._hung_up = True
            self.peer.flush()
            self._transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self._transport.close)

    # What comes

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: most of a long message where it is put together."""
        self._room = None if self._hung_up else self._reader.room(READ_BYTES)
        return self._read if self._room is None else self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Take the frames out of what has come."""
        if self._hung_up:
            return
        self.now = self.loop.time()
        there, self._room = self._room is not None, None
        try:
            if not there:
                self._reader.feed(bytes(self._read[:nbytes]))
            else:
                self._reader.filled(nbytes)
        except Broken as failure:
            if self._reader.greeted:
                self.peer.write(frames.goaway(self._last, failure.code, str(failure)))
            else:
                self.peer.write(NOT_HTTP2)
            self._drop_streams()
            self._hang_up()

    def on_preface(self) -> None:
        """Say what this end is like, now that the other one is known to understand it."""
        limits = self.limits
        own = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_FRAME_SIZE: limits.frame,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEAD,
        }
        more = limits.window - frames.DEFAULT_WINDOW
        self.peer.write(frames.settings(own) + frames.window_update(0, more))

    def on_whole_data(self, number: int, flags: int, data: Buffer) -> None:
        """Pass it on."""
        self.on_data_frame(number, flags, len(data), empty=not data)
        stream = self._receiver
        if data and stream is not None and not stream.closed:
            stream.touched = self.now
            stream.on_data(data)
        self.on_data_end()

    def on_data_frame(self, number: int, flags: int, length: int, *, empty: bool) -> None:
        """See that there is a stream, and room."""
        if length > self.limits.frame:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, more than {self.limits.frame}")
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
        self._receiver, self._ends = stream, bool(flags & frames.END_STREAM)
        if empty and not self._ends:
            self.on_spare_frame()

    def on_data(self, data: Buffer) -> None:
        """Pass it on."""
        if self._receiver is not None and not self._receiver.closed:
            self._receiver.touched = self.now
            self._receiver.on_data(data)

    def room(self) -> memoryview | None:
        """Where the stream wants it."""
        return None if self._receiver is None or self._receiver.closed else self._receiver.room()

    def on_data_there(self, size: int) -> None:
        """Tell the stream."""
        if self._receiver is not None:
            self._receiver.touched = self.now
            self._receiver.on_data_there(size)

    def on_data_end(self) -> None:
        """Give back what may be sent again."""
        stream, self._receiver = self._receiver, None
        if self._spent > self.limits.window // 2:
            self.peer.write(frames.window_update(0, self._spent))
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
            self.peer.write(frames.window_update(stream.id, stream.spent))
            stream.credit += stream.spent
            stream.spent = 0

    def on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Do what it says."""
        match kind:
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
                self.on_spare_frame()

    def on_head(self, number: int, flags: int, block: bytes) -> None:
        """A request begins, or ends with trailers."""
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
            self.on_spare_frame()
            self.peer.write(frames.rst_stream(number, ErrorCode.REFUSED_STREAM))
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
        self.on_spare_frame()
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
        self.on_spare_frame()
        for key, value in iter_unpack(">HI", payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW or not self.peer.set_initial_window(value, self._streams.values()):
                    raise Broken(ErrorCode.FLOW_CONTROL_ERROR, f"no window has {value} bytes")
            elif key == Setting.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                    raise Broken(ErrorCode.PROTOCOL_ERROR, f"no frame has {value} bytes")
                self.peer.max_frame = value
        self.peer.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _take_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Broken(ErrorCode.FRAME_SIZE_ERROR, "a PING has 8 bytes, on no stream")
        if not flags & frames.ACK:
            self.on_spare_frame()
            self.peer.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def on_spare_frame(self) -> None:
        """Frames that cost the client nothing must not cost the server much."""
        self._control_frames += 1
        if self._control_frames > CONTROL_FRAMES:
            if self.now - self._control_since < 1.0:
                raise Broken(ErrorCode.ENHANCE_YOUR_CALM, f"more than {CONTROL_FRAMES} frames a second that say little")
            self._control_frames, self._control_since = 0, self.now
