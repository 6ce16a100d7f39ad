"""How a call ends (gRPC over HTTP/2, "Responses")."""

from collections.abc import Sequence
from enum import IntEnum

from octavo.server.http2.frames import literals

MAX_MESSAGE = 1000
"""Characters of an error's message: clients take heads of 8 KiB."""

TRAILERS_OK = literals((b"grpc-status", b"0"))

_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}


class Status(IntEnum):
    """gRPC's codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that fails.

    Attributes:
        metadata: that is sent behind the status.
    """

    def __init__(self, status: Status, message: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
        self.metadata = metadata

    def trailers(self) -> bytes:
        """The header fields of the end."""
        status, message = str(int(self.status)).encode(), _percent_encoded(self.message)
        return literals((b"grpc-status", status), (b"grpc-message", message), *self.metadata)


def _percent_encoded(message: str) -> bytes:
    raw = message.encode("utf-8", "replace")
    return b"".join(bytes((each,)) if each in _PLAIN else b"%%%02X" % each for each in raw)
