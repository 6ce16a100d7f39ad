"""The frames of a channel: two parts, a header and a payload that the channel does not look into.

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


def header(kind: Kind, session: int) -> bytes:
    """The first part of a frame."""
    return _HEADER.pack(kind, session)


def parse_header(data: bytes) -> tuple[int, int]:
    """The kind of a frame and its session. Raises struct.error."""
    kind, session = _HEADER.unpack(data)
    return kind, session


def lease(seconds: float) -> bytes:
    """The payload of a `HELLO`."""
    return _LEASE.pack(seconds)


def parse_lease(data: bytes) -> float:
    """The seconds of a `HELLO`. Raises struct.error."""
    (seconds,) = _LEASE.unpack(data)
    return float(seconds)
