"""Messages as bytes on a socket, and back.

Every message is a frame: the sizes of its two parts, then what it says, in msgpack, then the bytes of its tensors one
behind the other, which are never copied into the former. Those of a large one stand in a block of memory that both
share (`octavo.hosting.blocks`), and the frame has the block's number.
"""

import struct
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from octavo.hosting.blocks import Borrower, Lender, News
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Block, Reply, Request, Returned

SIZES = struct.Struct("<IQI")
"""Bytes of the msgpack, bytes of the tensors, and the number of their block; 0 if they follow."""

MAX_HEAD = 1 << 24

_COPIED = 1 << 14
"""Tensors of so many bytes are joined to the frame they follow; to write them from where they are would cost more."""

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class Writer:
    """Makes frames of messages."""

    def __init__(self) -> None:
        self._lender = Lender()

    def frame(self, message: Request | Reply, tensors: Sequence[Buffer] = ()) -> list[bytes | memoryview]:
        """A message as buffers of bytes, to be written one after the other. Raises ValueError: what it says is too
        long."""
        head = _encoder.encode(message)
        if len(head) > MAX_HEAD:
            raise ValueError(f"a message of {len(head)} bytes, more than {MAX_HEAD}")
        size = 0
        for each in tensors:
            size += len(each) if type(each) is bytes else memoryview(each).nbytes
        if size <= _COPIED:
            return [b"".join((SIZES.pack(len(head), size, 0), head, *tensors))]
        lent = self._lender.lend(tensors, size)
        if lent is None:
            views = [memoryview(each).cast("B") for each in tensors]
            return [SIZES.pack(len(head), size, 0) + head, *views]
        number, news = lent
        return [_told(news) + SIZES.pack(len(head), size, number) + head]

    @property
    def lends(self) -> bool:
        """Whether the other side has blocks that it has not returned."""
        return self._lender.lends

    def take_back(self, message: Returned) -> bytes:
        """The other side has done with blocks. Returns what it is to be sent."""
        return _told(self._lender.take_back(message.numbers))

    @property
    def has_blocks(self) -> bool:
        """Whether memory is shared, for what was sent or is going to be."""
        return self._lender.has_blocks

    def close(self) -> None:
        """Nothing is sent any more."""
        self._lender.close()


def _told(news: Sequence[News]) -> bytes:
    """Messages about blocks, as frames."""
    heads = [_encoder.encode(Block(each.number, each.path, each.size)) for each in news]
    return b"".join([SIZES.pack(len(head), 0, 0) + head for head in heads])


class Reader(Generic[T]):
    """Takes frames out of bytes that come in pieces.

    Args:
        decoder: of what they say.
    """

    def __init__(self, decoder: "msgspec.msgpack.Decoder[T]") -> None:
        self._decoder = decoder
        self._borrower = Borrower()
        self._pending: list[bytes] = []
        self._missing = 0

    def feed(self, data: bytes) -> list[tuple[T, memoryview]]:
        """The messages that are whole now, each with the bytes of its tensors: those of `data`, or those of a block.

        Raises:
            msgspec.DecodeError: bytes that are no frame. OSError: a block that cannot be opened.
        """
        if self._pending:
            self._pending.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._pending)  # once, however many pieces there are
            self._pending.clear()
        view, at, self._missing = memoryview(data), 0, 0
        found: list[tuple[T, memoryview]] = []
        while len(view) - at >= SIZES.size:
            head, tensors, number = SIZES.unpack_from(view, at)
            if head > MAX_HEAD:
                raise msgspec.DecodeError(f"a message of {head} bytes, more than {MAX_HEAD}")
            begins = at + SIZES.size
            ends = begins + head + (0 if number else tensors)
            if len(view) < ends:
                self._missing = ends - len(view)
                break
            message = self._decoder.decode(view[begins : begins + head])
            if isinstance(message, Block):
                self._borrower.learn(News(message.number, message.path, message.size))
            elif number:
                found.append((message, self._borrowed(number, tensors)))
            else:
                found.append((message, view[begins + head : ends]))
            at = ends
        if at < len(view):
            self._pending.append(bytes(view[at:]))
        return found

    @property
    def has_blocks(self) -> bool:
        """Whether memory of the other side is open here."""
        return self._borrower.has_blocks

    def close(self) -> None:
        """Nothing comes any more. What has come may be looked at for as long as anybody likes."""
        self._borrower.close()

    def returned(self) -> Returned | None:
        """What is to be said of blocks that are not used here any more, if there are any."""
        numbers = self._borrower.ended()
        return Returned(tuple(numbers)) if numbers else None

    def _borrowed(self, number: int, size: int) -> memoryview:
        try:
            return self._borrower.borrow(number, size)
        except (KeyError, ValueError) as error:
            raise msgspec.DecodeError(f"a block that is not there: {error}") from None


requests: "msgspec.msgpack.Decoder[Request]" = msgspec.msgpack.Decoder(Request)
replies: "msgspec.msgpack.Decoder[Reply]" = msgspec.msgpack.Decoder(Reply)
