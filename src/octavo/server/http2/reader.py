"""Frames out of the bytes that come, in whatever pieces."""

from typing import Protocol

from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode
from octavo.server.http2.stream import Buffer

MAX_BLOCK = 64 * 1024
"""Bytes of a frame other than DATA, and of those of a head together."""

HEADER_BYTES = frames.HEADER.size

PLAIN_HEAD = frames.END_HEADERS | frames.END_STREAM
"""Flags of a head in one frame, without padding and priority."""

VIEWED_BYTES = 4096
"""Longer pieces of data are not copied."""


class Broken(Exception):
    """The client does not keep to the protocol: the connection ends."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Sink(Protocol):
    """Takes what a client sends. Every method may raise `Broken`."""

    def on_preface(self) -> None:
        """It speaks HTTP/2."""

    def on_head(self, number: int, flags: int, block: bytes) -> None:
        """A stream's head has come, in any number of frames. `flags` are those of the first."""

    def on_whole_data(self, number: int, flags: int, data: Buffer) -> None:
        """A frame of data without padding, all of which has come. It is never changed."""

    def on_data_frame(self, number: int, flags: int, length: int, *, empty: bool) -> None:
        """Another one begins, of so many bytes with its padding. `empty`: there are no others."""

    def on_data(self, data: Buffer) -> None:
        """A piece of that frame, which is never changed."""

    def room(self) -> memoryview | None:
        """Where the next bytes of that frame go without being copied, if there is such a place."""

    def on_data_there(self, size: int) -> None:
        """So many bytes have gone there."""

    def on_data_end(self) -> None:
        """The frame has ended."""

    def on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Another frame."""

    def on_spare_frame(self) -> None:
        """A frame that could have been part of the one before it."""


class FrameReader:
    """Takes frames out of bytes. Data is passed on as it comes, other frames when they are whole."""

    def __init__(self, sink: Sink) -> None:
        self.greeted = False
        self._sink = sink
        self._rest = b""
        self._in_data = False
        self._left = self._padding = 0
        self._head: tuple[int, int, bytearray] | None = None
        """One whose end has not come: its stream, its flags, its bytes."""

    def room(self, least: int) -> memoryview | None:
        """Where the next bytes may go, to be told of with `filled`; None if fewer than `least` would, or none."""
        if not self._in_data or self._left < least:
            return None
        room = self._sink.room()
        return room[: self._left] if room is not None and len(room) >= least else None

    def filled(self, size: int) -> None:
        """Bytes have come there. Raises Broken."""
        self._left -= size
        self._sink.on_data_there(size)
        if not self._left and not self._padding:
            self._in_data = False
            self._sink.on_data_end()

    def feed(self, data: bytes) -> None:
        """Bytes have come. Raises Broken."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = self._consume(data)
        if at < len(data):
            self._rest = data[at:]

    def _consume(self, data: bytes) -> int:
        """Returns how much was taken."""
        at, end = 0, len(data)
        if not self.greeted:
            if not data.startswith(frames.PREFACE[:end]):
                raise Broken(ErrorCode.PROTOCOL_ERROR, "this is no HTTP/2")
            if end < len(frames.PREFACE):
                return 0
            self.greeted = True
            self._sink.on_preface()
            at = len(frames.PREFACE)
        while True:
            if self._in_data:
                at = self._take_data(data, at, end)
            begins = at + HEADER_BYTES
            if self._in_data or end < begins:
                return at
            upper, lower, kind, flags, number = frames.HEADER.unpack_from(data, at)
            length, number = upper << 8 | lower, number & 0x7FFFFFFF
            after = begins + length
            if kind == frames.DATA and self._head is None:
                if after <= end and not flags & frames.PADDED:
                    at = after
                    whole = data if length <= VIEWED_BYTES else memoryview(data)
                    self._sink.on_whole_data(number, flags, whole[begins:after])
                    continue
                padded = flags & frames.PADDED and length
                if padded and end == begins:
                    return at
                self._begin_data(number, flags, length, data[begins] + 1 if padded else 0)
                at = begins + 1 if padded else begins
                continue
            if length > MAX_BLOCK:
                raise Broken(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, more than {MAX_BLOCK}")
            if after > end:
                return at
            at = after
            if kind == frames.HEADERS and self._head is None and flags | frames.END_STREAM == PLAIN_HEAD:
                self._sink.on_head(number, flags, data[begins:after])
            else:
                self._take(kind, flags, number, data[begins:after])

    def _begin_data(self, number: int, flags: int, length: int, padding: int) -> None:
        if padding > length:
            raise Broken(ErrorCode.PROTOCOL_ERROR, "more padding than there is frame")
        self._sink.on_data_frame(number, flags, length, empty=length == padding)
        self._in_data = True
        self._left, self._padding = length - padding, max(padding - 1, 0)

    def _take_data(self, data: bytes, at: int, end: int) -> int:
        size = min(self._left, end - at)
        if size:
            whole = data if size <= VIEWED_BYTES else memoryview(data)
            self._sink.on_data(whole[at : at + size])
            self._left -= size
            at += size
        if self._left:
            return at
        size = min(self._padding, end - at)
        self._padding -= size
        if not self._padding:
            self._in_data = False
            self._sink.on_data_end()
        return at + size

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A whole frame that is no data."""
        if self._head is not None and (kind != frames.CONTINUATION or number != self._head[0]):
            raise Broken(ErrorCode.PROTOCOL_ERROR, "a frame within a head")
        if kind == frames.HEADERS:
            self._take_headers(flags, number, payload)
        elif kind == frames.CONTINUATION:
            self._take_continuation(flags, number, payload)
        else:
            self._sink.on_frame(kind, flags, number, payload)

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
            self._sink.on_head(number, flags, block)
        else:
            self._head = (number, flags, bytearray(block))

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._head is None:
            raise Broken(ErrorCode.PROTOCOL_ERROR, "nothing to continue")
        self._sink.on_spare_frame()
        _, first_flags, block = self._head
        block += payload
        if len(block) > MAX_BLOCK:
            raise Broken(ErrorCode.ENHANCE_YOUR_CALM, f"a head of more than {MAX_BLOCK} bytes")
        if flags & frames.END_HEADERS:
            self._head = None
            self._sink.on_head(number, first_flags, bytes(block))
