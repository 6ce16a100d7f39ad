"""The frames of a channel: a header, and a payload that the channel does not look into.

A frontend speaks in sessions. `HELLO` begins one: the worker drops what it held for the frontend before, and keeps what
comes from now on until the session's lease has run out, which every frame renews (`BEAT` does nothing else). A frame of
a session that the worker does not know is answered with `UNKNOWN`: its lease ran out, and the frontend begins anew.
"""

import struct
from enum import IntEnum

_HEADER = struct.Struct("<BI")
_LEASE = struct.Struct("<d")


class Kind(IntEnum):
    """What a frame is about."""

    HELLO = 1
    BEAT = 2
    DATA = 3
    UNKNOWN = 4


def pack(kind: Kind, session: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return _HEADER.pack(kind, session) + payload


def unpack(frame: bytes) -> tuple[int, int, memoryview]:
    """The kind of a frame, its session and its payload. Raises struct.error."""
    kind, session = _HEADER.unpack_from(frame)
    return kind, session, memoryview(frame)[_HEADER.size :]


def pack_lease(seconds: float) -> bytes:
    """The payload of a `HELLO`."""
    return _LEASE.pack(seconds)


def unpack_lease(payload: memoryview) -> float:
    """The seconds of a `HELLO`. Raises struct.error."""
    (seconds,) = _LEASE.unpack(payload)
    return float(seconds)
