"""Large data from process to process by memory that both share, written once and never pickled.

Who sends lends a block, and gets it back when the other has done with it. A block is a file without a name, which ends
with the processes that have it open: nothing is left behind, and no limit of /dev/shm applies.
"""

import logging
import mmap
import os
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.tensors import Buffer

log = logging.getLogger(__name__)

LEAST_BYTES = 64 * 1024
"""Less goes through the socket, which is faster for it."""

MOST_BYTES = 2**30
"""Of the blocks of one side of a connection; what is more goes through the socket."""

MOST_FREE_BYTES = 2**28
"""That are kept for what comes."""

MOST_BLOCKS, MOST_FREE_BLOCKS = 256, 128
"""The same in numbers: each block takes descriptors of both processes."""

SPARE_SECONDS = 3.0
"""Blocks that nothing came for in so long are closed, when others come back, or the news that none do."""

AVAILABLE = hasattr(os, "memfd_create")


@dataclass(frozen=True, slots=True)
class News:
    """A block that the other side must know of before it reads it. A size of 0 is one that is there no more."""

    number: int
    path: str
    size: int


@dataclass(slots=True)
class _Block:
    number: int
    memory: mmap.mmap
    file: int

    def close_file(self) -> None:
        """The other side has opened it. The memory has a descriptor of its own."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def close(self) -> None:
        self.memory.close()
        self.close_file()


class Lender:
    """The side that writes."""

    def __init__(self) -> None:
        self._lent: dict[int, _Block] = {}
        self._free: dict[int, list[_Block]] = {}
        self._spare: dict[int, int] = {}
        """By room: the fewest that were free since `_looked`, `time.monotonic()`. So many were not needed."""
        self._looked = time.monotonic()
        self._free_bytes = 0
        self._bytes = self._blocks = 0
        self._number = 0

    def lend(self, buffers: Sequence[Buffer], size: int) -> tuple[int, list[News]] | None:
        """Write buffers into a block, one behind the other.

        Returns:
            Its number, and what the other side must be told first; None if the socket is to take them.
        """
        if size < LEAST_BYTES or not AVAILABLE:
            return None
        room, news = _room(size), []
        block = self._take(room)
        if block is None:
            if self._bytes + room > MOST_BYTES or self._blocks >= MOST_BLOCKS:
                return None
            try:
                block = self._new(room)
            except OSError as error:
                log.warning("cannot share memory: %s; what is large goes through a socket", error)
                return None
            news.append(News(block.number, f"/proc/{os.getpid()}/fd/{block.file}", room))
        at = 0
        for each in buffers:
            view = memoryview(each).cast("B")
            block.memory[at : at + view.nbytes] = view
            at += view.nbytes
        self._lent[block.number] = block
        return block.number, news

    def _take(self, room: int) -> _Block | None:
        """A block that is free and has the room, but not much more; None if there is none."""
        if not self._free.get(room):
            room = min([each for each, free in self._free.items() if room < each <= 2 * room and free], default=0)
        if not room:
            return None
        free = self._free[room]
        block = free.pop()
        self._free_bytes -= room
        self._spare[room] = min(self._spare.get(room, 0), len(free))
        return block

    @property
    def lends(self) -> bool:
        """Whether the other side has some."""
        return bool(self._lent)

    @property
    def has_blocks(self) -> bool:
        """Whether there are any, lent or free."""
        return self._blocks > 0

    def take_back(self, numbers: Iterable[int]) -> list[News]:
        """The other side has done with blocks. Returns what it must be told, also of others that are closed."""
        news = []
        for number in numbers:
            block = self._lent.pop(number)
            room = len(block.memory)
            if self._free_bytes + room > MOST_FREE_BYTES or self._blocks - len(self._lent) > MOST_FREE_BLOCKS:
                self._forget(block, room)
                news.append(News(number, "", 0))
            else:
                block.close_file()
                self._free_bytes += room
                self._free.setdefault(room, []).append(block)
        now = time.monotonic()
        if now - self._looked >= SPARE_SECONDS:
            self._looked = now
            news += self._close_spare()
        return news

    def _close_spare(self) -> list[News]:
        news = []
        for room, free in self._free.items():
            spare = free[: self._spare.get(room, 0)]  # the next one is taken from the end
            for block in spare:
                self._forget(block, room)
                news.append(News(block.number, "", 0))
            del free[: len(spare)]
            self._free_bytes -= room * len(spare)
            self._spare[room] = len(free)
        return news

    def _forget(self, block: _Block, room: int) -> None:
        self._bytes -= room
        self._blocks -= 1
        block.close()

    def close(self) -> None:
        """Let go of all. Who has borrowed some has them still."""
        for block in (*self._lent.values(), *(each for blocks in self._free.values() for each in blocks)):
            block.close()
        self._lent.clear()
        self._free.clear()
        self._blocks = self._bytes = self._free_bytes = 0

    def _new(self, room: int) -> _Block:
        file = os.memfd_create("octavo")
        try:
            os.posix_fallocate(file, 0, room)  # else writing to it could end this process, when memory is short
            memory = mmap.mmap(file, room)
        except BaseException:
            os.close(file)
            raise
        self._number += 1
        self._blocks += 1
        self._bytes += room
        return _Block(self._number, memory, file)


def _room(size: int) -> int:
    """The room of a block for so many bytes: at most a quarter more, so that tensors of about one size can follow one
    another there."""
    step = (1 << (size - 1).bit_length()) // 8
    return -(-size // step) * step


class Borrower:
    """The side that reads. A block is given back when nobody looks at it any more, however long code keeps it."""

    def __init__(self) -> None:
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._leases: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        self._ended: deque[int] = deque()

    @property
    def has_blocks(self) -> bool:
        """Whether it knows of any."""
        return bool(self._blocks)

    def learn(self, news: News) -> None:
        """There is a block, or no more. Raises OSError."""
        if not news.size:
            self._blocks.pop(news.number, None)  # its memory goes with the last that looks at it
            return
        file = os.open(news.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._blocks[news.number] = np.frombuffer(mmap.mmap(file, news.size), np.uint8)
        finally:
            os.close(file)

    def borrow(self, number: int, size: int) -> memoryview:
        """What was written to a block, which may be written to here, too.

        Raises:
            KeyError, ValueError: there is no such block, or it has less.
        """
        block = self._blocks[number]
        if size > block.size:
            raise ValueError(f"{size} bytes of a block of {block.size}")
        lease = block[:size]  # an object of its own, that ends with the last view of it
        self._leases[number] = weakref.ref(lease, lambda _: self._ended.append(number))
        return lease.data

    def close(self) -> None:
        """Let go of all that nobody looks at."""
        self._blocks.clear()

    def ended(self) -> list[int]:
        """The blocks that nobody looks at any more. Any thread may ask."""
        numbers = []
        with suppress(IndexError):  # other threads may ask, too
            while True:
                numbers.append(self._ended.popleft())
        return numbers
