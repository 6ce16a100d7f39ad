"""A client of HTTP/2 that writes and reads frame by frame, well or badly."""

import socket
import struct
from typing import NamedTuple

import hpack

from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode, Setting

CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ServerLive"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)
NOTHING = bytes(5)
"""A message of no bytes."""


class Frame(NamedTuple):
    """A frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class RawClient:
    """A connection."""

    def __init__(self, address: str, preface: bytes = frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0)) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._read = b""
        self.send(preface)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Write any bytes."""
        self._socket.sendall(data)

    def head(self, stream: int, flags: int = frames.END_HEADERS, *, fields: tuple[tuple[str, str], ...] = CALL) -> None:
        """Begin a request."""
        self.send(frames.frame(frames.HEADERS, flags, stream, self._encoder.encode(fields)))

    def data(self, stream: int, data: bytes = NOTHING, flags: int = frames.END_STREAM) -> None:
        """A part of its body."""
        self.send(frames.frame(frames.DATA, flags, stream, data))

    def next(self) -> Frame | None:
        """The next frame; None when the server has closed."""
        while len(self._read) < frames.HEADER.size or len(self._read) < frames.HEADER.size + self._length:
            more = self._socket.recv(65536)
            if not more:
                return None
            self._read += more
        _, _, kind, flags, stream = frames.HEADER.unpack_from(self._read)
        end = frames.HEADER.size + self._length
        payload, self._read = self._read[frames.HEADER.size : end], self._read[end:]
        return Frame(kind, flags, stream, payload)

    @property
    def _length(self) -> int:
        return int.from_bytes(self._read[:3], "big")

    def until(self, kind: int) -> Frame:
        """The next frame of a kind."""
        while (found := self.next()) is None or found.kind != kind:
            assert found is not None, f"the server has closed, and there was no frame of type {kind}"
        return found

    def fields(self, frame: Frame) -> dict[str, str]:
        """The header fields of a frame."""
        return dict(self._decoder.decode(frame.payload))

    def answer(self) -> dict[str, str]:
        """The trailers of the next answer."""
        while not (found := self.until(frames.HEADERS)).flags & frames.END_STREAM:
            self.fields(found)
        return self.fields(found)

    def failure(self) -> ErrorCode:
        """Why the server gives the connection up, which it does."""
        _, code = struct.unpack_from(">II", self.until(frames.GOAWAY).payload)
        while self.next() is not None:
            pass
        return ErrorCode(code)


def settings(**values: int) -> bytes:
    """SETTINGS of a client."""
    return frames.settings({Setting[name.upper()]: value for name, value in values.items()})
