"""Frames of HTTP/2 (RFC 9113, section 4 and 6), as they are written."""

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEADER = struct.Struct(">HBBBI")
"""Of a frame: the upper 16 and the lower 8 bits of its length, its type, its flags, its stream."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
LARGEST_FRAME = 2**24 - 1


class Setting(IntEnum):
    """What one end tells the other of itself (section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """What stands before the payload of a frame."""
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def prefix(length: int, kind: int, flags: int) -> bytes:
    """The same without the stream, which follows it in 4 bytes."""
    return head(length, kind, flags, 0)[:5]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """What this end is like."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    """So many bytes more may be sent; to stream 0 for all streams together."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """The end of a stream before its time."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: ErrorCode, reason: str = "") -> bytes:
    """No other stream is begun."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + reason.encode())


def literals(*fields: tuple[bytes, bytes]) -> bytes:
    """Header fields that need no table to be understood (RFC 7541, section 6.2.2): what is written here is always the
    same, or said once."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    """Without Huffman's code. Its length is an integer with a prefix of 7 bits (RFC 7541, section 5.1)."""
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    length -= 0x7F
    written = bytearray((0x7F,))
    while length > 0x7F:
        written.append(0x80 | length & 0x7F)
        length >>= 7
    written.append(length)
    return bytes(written) + text
