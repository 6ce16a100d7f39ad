"""Messages within the bodies of calls: each behind its length, some of them compressed ("gRPC over HTTP/2")."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from octavo.server.grpc.status import RpcError, Status
from octavo.server.http2.stream import Buffer

PREFIX = struct.Struct(">?I")
"""Whether a message is compressed, and its length."""

ENCODINGS = {"identity": 0, "deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}
"""How messages may be compressed, as zlib knows it."""


class Message(NamedTuple):
    """A message as it came.

    Attributes:
        encoding: how it is compressed; empty if it is not. size: bytes that came.
    """

    data: Buffer
    encoding: str
    size: int

    def unpacked(self, limit: int) -> bytes:
        """What it says, in `limit` bytes at most; it takes its time. Raises RpcError: it is damaged, or says more."""
        bits = ENCODINGS[self.encoding]
        if not bits:
            raise RpcError(Status.INTERNAL, "a message is compressed, and grpc-encoding does not say how")
        unpacker = zlib.decompressobj(bits)
        try:
            whole = unpacker.decompress(self.data, limit + 1)
        except zlib.error as error:
            raise RpcError(Status.INVALID_ARGUMENT, f"the request cannot be unpacked: {error}") from None
        if len(whole) > limit:
            message = f"the request has more than the {limit} bytes that this server takes (--max-tensor-body-bytes)"
            raise RpcError(Status.RESOURCE_EXHAUSTED, message)
        if not unpacker.eof:
            raise RpcError(Status.INVALID_ARGUMENT, "the request is compressed, and its end is missing")
        return whole


class MessageReader:
    """Takes messages out of a body.

    Args:
        encoding: of those that are compressed. limit: of the bytes of one.
        admit: is told how long one is before it comes, and may raise RpcError.
    """

    __slots__ = ("_admit", "_encoding", "_have", "_limit", "_need", "_parts", "_prefix")

    def __init__(self, encoding: str, limit: int, admit: Callable[[int], None]) -> None:
        self._admit = admit
        self._encoding = encoding
        self._limit = limit
        self._parts: list[Buffer] = []
        self._have = 0
        self._prefix: tuple[bool, int] | None = None
        self._need = PREFIX.size

    @property
    def inside(self) -> int:
        """Bytes of a message whose end has not come."""
        return self._have

    def feed(self, data: Buffer) -> Sequence[Message]:
        """The messages that are whole now. One that came in one piece shares its memory.

        Raises:
            RpcError: one is too long, or not admitted.
        """
        found: list[Message] = []
        while (missing := self._need - self._have) <= len(data):
            piece, data = data[:missing], data[missing:]
            if self._parts:
                self._parts.append(piece)
                piece = b"".join(self._parts)
                self._parts = []
            self._have = 0
            if self._prefix is None:
                self._begin(piece)
                continue
            found.append(Message(piece, self._encoding if self._prefix[0] else "", len(piece)))
            self._prefix, self._need = None, PREFIX.size
            if not data:
                return found
        if data:
            self._parts.append(data)
            self._have += len(data)
        return found

    def _begin(self, prefix: Buffer) -> None:
        compressed, length = PREFIX.unpack(prefix)
        if length > self._limit:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"the request has {length} bytes, more than the {self._limit} that this server takes "
                "(--max-tensor-body-bytes)",
            )
        self._admit(length)
        self._prefix, self._need = (compressed, length), length


def total(buffers: Sequence[Buffer]) -> int:
    """The bytes of all."""
    return sum(map(len, buffers))
