"""A gRPC client that costs little: it sends the same call again as soon as the answer is there (RFC 9113).

grpc.aio takes 0.3 ms of a core for a call, more than the servers that are measured. This one knows nothing of headers
but its own, so that a failed call is merely one without a message.
"""

import asyncio
import struct
import time

from load import Client, Clock

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
MAX_WINDOW = 2**31 - 1
OUR_MAX_FRAME = 2**22
"""Bytes of a frame that gRPC's clients take."""

POST, HTTP = b"\x83", b"\x86"
"""Fields of a header that have numbers (RFC 7541, appendix A)."""

_FIELDS = {":path": INFER, ":authority": "127.0.0.1", "content-type": "application/grpc", "te": "trailers"}


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame with its header of nine bytes."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings() -> bytes:
    """What a client says first: it takes answers of any size."""
    return (
        PREFACE
        + frame(SETTINGS, 0, 0, struct.pack(">HIHI", INITIAL_WINDOW_SIZE, MAX_WINDOW, MAX_FRAME_SIZE, OUR_MAX_FRAME))
        + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW))
    )


def _literal(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


FIRST_HEAD = POST + HTTP + b"".join(b"\x40" + _literal(name) + _literal(value) for name, value in _FIELDS.items())
"""The header of a connection's first call, whose fields the server is to remember (RFC 7541 6.2.1)."""

NEXT_HEAD = POST + HTTP + bytes(0x80 + 62 + at for at in range(len(_FIELDS)))
"""That of the others: the numbers of these fields, the first of which is 62."""


class GrpcClient(Client, asyncio.Protocol):
    """Calls ModelInfer with a message that was serialised before."""

    def __init__(self, request: bytes, clock: Clock) -> None:
        super().__init__(request, clock)
        self._body = struct.pack(">BI", 0, len(request)) + request
        self._received: list[bytes] = []
        self._missing = 9
        self._stream = -1
        self._sent_bytes = 0
        self._window = self._stream_window = self._initial_window = DEFAULT_WINDOW
        self._max_frame = DEFAULT_FRAME
        self._taken = 0
        self._answer: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(settings())

    def send(self) -> None:
        self._stream += 2
        self._stream_window = self._initial_window
        self._answer.clear()
        self._sent_bytes = 0
        self._flush(frame(HEADERS, END_HEADERS, self._stream, FIRST_HEAD if self._stream == 1 else NEXT_HEAD))

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._received or self._missing > 0:
            self._received.append(data)
            if self._missing > 0:
                return
            data = b"".join(self._received)
            self._received.clear()
        at, size = 0, len(data)
        ends = 9
        while size >= at + 9:
            size_kind, flags, stream = struct.unpack_from(">IBI", data, at)
            ends = at + 9 + (size_kind >> 8)
            if size < ends:
                break
            self._frame(size_kind & 0xFF, flags, stream, data[at + 9 : ends])
            at, ends = ends, ends + 9
        self._missing = ends - size
        if at < size:
            self._received.append(data[at:])

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._answer.append(payload)
            self._take(len(payload))
        elif kind == SETTINGS and not flags & ACK:
            self._set(payload)
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._grant(stream, *struct.unpack(">I", payload))
        elif kind in (RST_STREAM, GOAWAY):
            self.fail(f"the server ended {'the call' if kind == RST_STREAM else 'the connection'}")
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self._end_of_call()

    def _end_of_call(self) -> None:
        if self._answer:
            self.answered(lambda: b"".join(self._answer)[5:])
        else:
            self.fail("a call failed")

    def _set(self, payload: bytes) -> None:
        """The server's settings; the first are what a client waits for before it begins."""
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME_SIZE:
                self._max_frame = value
        self.transport.write(frame(SETTINGS, ACK, 0, b""))
        if self._stream < 0:
            self.sent = time.perf_counter()
            self.send()

    def _grant(self, stream: int, size: int) -> None:
        if not stream:
            self._window += size
        elif stream == self._stream:
            self._stream_window += size
        self._flush(b"")

    def _take(self, size: int) -> None:
        """Let the server send more once a good part of what it may has come."""
        self._taken += size
        if self._taken > MAX_WINDOW // 2:
            self.transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0

    def _flush(self, head: bytes) -> None:
        """Send what the server's windows let through."""
        frames = [head]
        while size := min(len(self._body) - self._sent_bytes, self._max_frame, self._window, self._stream_window):
            piece = self._body[self._sent_bytes : self._sent_bytes + size]
            self._sent_bytes += size
            self._window -= size
            self._stream_window -= size
            last = self._sent_bytes == len(self._body)
            frames.append(frame(DATA, END_STREAM if last else 0, self._stream, piece))
        if frames != [b""]:
            self.transport.write(b"".join(frames))
