"""Which requests a process is computing: written where others can read it when the process has died of one of them.

The file has a slot for each batch that may be computed at once. It is memory that is shared, so that to keep it costs
no call of the operating system.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_HEAD = struct.Struct("<II")
"""Slots, and the numbers that each has room for."""

_SLOT = struct.Struct("<dQ")
"""`time.monotonic()` when the batch began, and how many numbers follow; 0 if nothing is computed."""

_NUMBER = struct.Struct("<Q")


@cache
def _batch(count: int) -> struct.Struct:
    """A slot with so many numbers."""
    return struct.Struct(f"{_SLOT.format}{count}Q")


def path_beside(socket: str) -> Path:
    """Where the process that listens at a socket writes it."""
    return Path(f"{socket}.running")


class Running:
    """The end of the process that computes.

    Args:
        slots: batches at once. capacity: requests of a batch.
    """

    def __init__(self, path: Path, slots: int, capacity: int) -> None:
        self._size = _SLOT.size + capacity * _NUMBER.size
        self._capacity = capacity
        self._slots = 0
        self._file = open(path, "w+b")  # noqa: SIM115 - for as long as the process lives
        self.make_room(slots)

    def make_room(self, slots: int) -> None:
        """There are to be so many slots at least."""
        if slots > self._slots:
            self._slots = slots
            self._file.truncate(_HEAD.size + slots * self._size)
            # Threads that use the memory of before go on writing to the same file.
            self._memory = mmap.mmap(self._file.fileno(), 0)
            _HEAD.pack_into(self._memory, 0, slots, self._capacity)

    def begin(self, slot: int, numbers: Sequence[int], now: float) -> None:
        """A batch is begun."""
        count = len(numbers)
        _batch(count).pack_into(self._memory, _HEAD.size + slot * self._size, now, count, *numbers)

    def end(self, slot: int) -> None:
        """It was computed."""
        _SLOT.pack_into(self._memory, _HEAD.size + slot * self._size, 0.0, 0)


class RunningElsewhere:
    """The end of a process that waits for what another one computes. It can be read when that one has died, and its
    file is gone.

    Raises:
        FileNotFoundError: it has died before. OSError: no descriptors left.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> dict[int, float]:
        """The numbers of the requests that are computed, or were when the process died, each with when its batch
        began."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if len(data) < _HEAD.size:
            return {}
        slots, capacity = _HEAD.unpack_from(data)
        found: dict[int, float] = {}
        for slot in range(slots):
            at = _HEAD.size + slot * (_SLOT.size + capacity * _NUMBER.size)
            began, count = _SLOT.unpack_from(data, at)
            for number in struct.unpack_from(f"<{count}Q", data, at + _SLOT.size):
                found[number] = began
        return found

    def close(self) -> None:
        """Nobody waits any more."""
        os.close(self._file)
