"""Messages within the bodies of calls: each behind its length, some of them compressed ("gRPC over HTTP/2")."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from octavo.server.grpc.status import RpcError, Status
from octavo.server.http2.stream import Buffer

PREFIX = struct.Struct(">?I")
"""Whether a message is compressed, and its length."""

LONG_BYTES = 64 * 1024
"""Of a message that is put together where it will stay, as it comes."""

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


def whole_message(data: Buffer) -> Message | None:
    """The message that data is, if it is one that is not compressed."""
    size = len(data) - PREFIX.size
    if size < 0 or PREFIX.unpack_from(data) != (False, size):
        return None
    return Message(data[PREFIX.size :], "", size)


class MessageReader:
    """Takes messages out of a body.

    Args:
        encoding: of those that are compressed. limit: of the bytes of one.
        admit: is told how long one is before it comes, and may raise RpcError.
    """

    __slots__ = ("_admit", "_encoding", "_have", "_limit", "_need", "_parts", "_prefix", "_whole")

    def __init__(self, encoding: str, limit: int, admit: Callable[[int], None]) -> None:
        self._admit = admit
        self._encoding = encoding
        self._limit = limit
        self._parts: list[Buffer] = []
        self._whole: memoryview | None = None
        """A long message, `_have` bytes of which have come."""
        self._have = 0
        self._prefix: tuple[bool, int] | None = None
        self._need = PREFIX.size

    @property
    def inside(self) -> int:
        """Bytes of a message whose end has not come."""
        return self._have

    @property
    def room(self) -> memoryview | None:
        """Where what is missing of a long message goes; None if there is none."""
        return None if self._whole is None else self._whole[self._have :]

    def filled(self, size: int) -> Sequence[Message]:
        """So many bytes have gone there. Returns what `feed` does."""
        self._have += size
        return (self._end(b""),) if self._have == self._need else ()

    def feed(self, data: Buffer) -> Sequence[Message]:
        """The messages that are whole now. One that came in one piece shares its memory.

        Raises:
            RpcError: one is too long, or not admitted.
        """
        found: list[Message] = []
        while (missing := self._need - self._have) <= len(data):
            piece, data = data[:missing], data[missing:]
            if self._prefix is not None:
                found.append(self._end(piece))
                if not data:
                    return found
                continue
            if self._parts:
                piece = b"".join((*self._parts, piece))
                self._parts = []
            self._begin(piece, len(data))
        if data:
            self._put(data)
        return found

    def _begin(self, prefix: Buffer, there: int) -> None:
        compressed, length = PREFIX.unpack(prefix)
        if length > self._limit:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"the request has {length} bytes, more than the {self._limit} that this server takes "
                "(--max-tensor-body-bytes)",
            )
        self._admit(length)
        self._have, self._need, self._prefix = 0, length, (compressed, length)
        if length > LONG_BYTES and there < length:
            self._whole = np.empty(length, np.uint8).data

    def _put(self, data: Buffer) -> None:
        if self._whole is None:
            self._parts.append(data)
        else:
            self._whole[self._have : self._have + len(data)] = data
        self._have += len(data)

    def _end(self, last: Buffer) -> Message:
        """The message with its last piece."""
        assert self._prefix is not None
        compressed, length = self._prefix
        data = last
        if self._whole is not None:
            self._whole[length - len(last) :] = last
            data = self._whole
        elif self._parts:
            data = b"".join((*self._parts, last))
        self._parts, self._whole = [], None
        self._have, self._need, self._prefix = 0, PREFIX.size, None
        return Message(data, self._encoding if compressed else "", length)


def total(buffers: Sequence[Buffer]) -> int:
    """The bytes of all."""
    return sum(map(len, buffers))
