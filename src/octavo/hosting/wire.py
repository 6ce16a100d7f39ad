"""What frontends and the worker of a hosted model tell each other, over a socket of their own.

Every message is a frame: the sizes of its two parts, then what it says, in msgpack, then the bytes of its tensors one
behind the other, which are never copied into the former.
"""

import struct
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

SIZES = struct.Struct("<IQ")
"""Bytes of the msgpack, and of the tensors."""

MAX_HEAD = 1 << 24

Buffer = bytes | bytearray | memoryview


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A tensor, the next `size` bytes of the frame."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class Infer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Compute something.

    Attributes:
        number: of the request, on this connection.
        parts: its inputs. outputs: those that are wanted; none for all.
        priority: 0 for the default. timeout: seconds that it may wait; 0 for ever.
    """

    number: int
    parts: tuple[Part, ...]
    outputs: tuple[str, ...] = ()
    priority: int = 0
    timeout: float = 0.0


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Nobody waits for a request any more."""

    number: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The outputs of a request."""

    number: int
    parts: tuple[Part, ...]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Why there are none. `code` is the value of a `Code`."""

    number: int
    code: str
    message: str
    retry_after: float | None = None


Request = Infer | Cancel
Reply = Done | Failed

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


def frame(message: Request | Reply, tensors: Sequence[Buffer] = ()) -> list[bytes | memoryview]:
    """A message as buffers to be written one after the other. Raises ValueError: what it says is too long."""
    head = _encoder.encode(message)
    if len(head) > MAX_HEAD:
        raise ValueError(f"a message of {len(head)} bytes, more than {MAX_HEAD}")
    views = [memoryview(each).cast("B") for each in tensors]
    return [SIZES.pack(len(head), sum(view.nbytes for view in views)) + head, *views]


class Frames(Generic[T]):
    """Takes frames out of bytes that come in pieces.

    Args:
        decoder: of what they say.
    """

    def __init__(self, decoder: "msgspec.msgpack.Decoder[T]") -> None:
        self._decoder = decoder
        self._pending: list[bytes] = []
        self._missing = 0

    def feed(self, data: bytes) -> list[tuple[T, memoryview]]:
        """The messages that are whole now, each with the bytes of its tensors, which are those of `data`.

        Raises:
            msgspec.DecodeError: bytes that are no frame.
        """
        if self._pending:
            self._pending.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._pending)  # once, however many pieces there are
            self._pending.clear()
        view, at, self._missing = memoryview(data), 0, 0
        found = []
        while len(view) - at >= SIZES.size:
            head, tensors = SIZES.unpack_from(view, at)
            if head > MAX_HEAD:
                raise msgspec.DecodeError(f"a message of {head} bytes, more than {MAX_HEAD}")
            begins = at + SIZES.size
            ends = begins + head + tensors
            if len(view) < ends:
                self._missing = ends - len(view)
                break
            found.append((self._decoder.decode(view[begins : begins + head]), view[begins + head : ends]))
            at = ends
        if at < len(view):
            self._pending.append(bytes(view[at:]))
        return found


requests: "msgspec.msgpack.Decoder[Request]" = msgspec.msgpack.Decoder(Request)
replies: "msgspec.msgpack.Decoder[Reply]" = msgspec.msgpack.Decoder(Reply)
