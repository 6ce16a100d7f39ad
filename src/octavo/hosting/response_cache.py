"""Answers by the requests that they are for, in memory that all frontends of a server share.

The memory is of a fixed size. It has records of one size each, an entry takes as many as it needs, and where none are
left the entries go that were not used for longest. What is all zero is an empty cache.
"""

import fcntl
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # with numpy, which a supervisor need not load
    from octavo.hosting.tensors import Buffer

log = logging.getLogger(__name__)

KEY_BYTES = 16

LEAST_BYTES = 4096
"""Of a cache."""

MOST_ENTRY_BYTES = 2**32 - 1

_DATA = 476
"""Bytes of an entry that a record holds."""

_GROWTH = 4096
"""Records whose memory is made sure of at once: what is never used is never taken."""

# The 64-bit words that the memory begins with.
_TORN, _NEWEST, _OLDEST, _FREE, _LEFT, _FRESH, _SURE, _LIMIT, _ENTRIES = range(9)
_EVICTIONS, _HITS, _MISSES, _LOOKUP_TIME, _INSERTION_TIME = range(9, 14)
_HEAD = 16 * 8

# The 32-bit words of a record: the key of its entry, and of that the size, the next newer and older one, and the next
# of its bucket, all of which an entry has in its first record; and the record that follows it. Records are counted
# from 1.
_SIZE, _NEWER, _OLDER, _BESIDE, _NEXT, _META = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """What a process is told of a cache. Attributes: file: a descriptor. shared: whether others use it meanwhile."""

    file: int
    size: int
    shared: bool


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """What has happened in a cache, whichever process did it.

    Attributes:
        utilization: share of its records that have entries. lookup_time, insertion_time: nanoseconds.
    """

    utilization: float
    entries: int
    evictions: int
    hits: int
    misses: int
    lookup_time: int
    insertion_time: int


def cache_file(size: int) -> int:
    """A descriptor of memory for a cache. It has no name, and ends with those who have it open. Raises OSError."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("octavo-cache")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.truncate(file, size)
    return file


class ResponseCache:
    """Keeps what was used last. One thread of a process uses it.

    Args:
        size: bytes of it all. memory: where; None has it in this process alone.
    """

    def __init__(self, size: int, memory: CacheMemory | None = None) -> None:
        self._file = -1 if memory is None else memory.file
        self._locks = memory is not None and memory.shared
        self._memory = mmap.mmap(self._file, size)
        self._count = count = max((size - _HEAD) // (_DATA + 4 * _META + 4), 1)
        buckets = 1 << (count.bit_length() - 1)
        self._mask = buckets - 1
        self._meta_at = _HEAD + 4 * buckets
        self._data_at = self._meta_at + 4 * _META * count
        self._view = view = memoryview(self._memory)
        self._words = view[:_HEAD].cast("Q")
        self._buckets = view[_HEAD : self._meta_at].cast("I")
        self._meta = view[self._meta_at : self._data_at].cast("I")

    def get(self, key: bytes) -> bytes | None:
        """What was put there, if it is there yet."""
        began = time.perf_counter_ns()
        with self._changing() as words:
            number = self._find(key)
            if not number:
                words[_MISSES] += 1
                value = None
            else:
                words[_HITS] += 1
                if number != words[_NEWEST]:
                    self._take_out(number)
                    self._make_newest(number)
                value = self._read(number)
            words[_LOOKUP_TIME] += time.perf_counter_ns() - began
        return value

    def put(self, key: bytes, pieces: "Sequence[Buffer]") -> bool:
        """Keep bytes, one piece behind the other, unless there are some already. Returns whether they fit."""
        began = time.perf_counter_ns()
        value = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces)).cast("B")
        needed = max(-(-len(value) // _DATA), 1)
        if needed > self._count or len(value) > MOST_ENTRY_BYTES:
            return False
        with self._changing() as words:
            fits = bool(self._find(key)) or self._make_room(needed)
            if fits and not self._find(key):
                self._write(key, value, needed)
            words[_INSERTION_TIME] += time.perf_counter_ns() - began
        return fits

    @property
    def figures(self) -> CacheFigures:
        """What has happened in it."""
        with self._changing() as words:
            return CacheFigures(
                utilization=(words[_FRESH] - words[_LEFT]) / self._count,
                entries=words[_ENTRIES],
                evictions=words[_EVICTIONS],
                hits=words[_HITS],
                misses=words[_MISSES],
                lookup_time=words[_LOOKUP_TIME],
                insertion_time=words[_INSERTION_TIME],
            )

    @contextmanager
    def _changing(self) -> "Iterator[memoryview[int]]":
        """Nobody else is in there. Whoever died in there has left its lock, and what nobody can rely on any more."""
        words = self._words
        if self._locks:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            if words[_TORN]:
                self._clear()
            words[_TORN] = 1
            yield words
            words[_TORN] = 0
        finally:
            if self._locks:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _clear(self) -> None:
        for word in (_NEWEST, _OLDEST, _FREE, _LEFT, _FRESH, _ENTRIES):
            self._words[word] = 0
        self._view[_HEAD : self._meta_at] = bytes(self._meta_at - _HEAD)

    # --- entries ------------------------------------------------------------------------------------------------------

    def _bucket(self, key: bytes) -> int:
        return int.from_bytes(key[:4], "little") & self._mask

    def _find(self, key: bytes) -> int:
        """The first record of an entry; 0 if there is none."""
        number = self._buckets[self._bucket(key)]
        while number and self._key(number) != key:
            number = self._meta[(number - 1) * _META + _BESIDE]
        return number

    def _key(self, number: int) -> memoryview:
        at = self._meta_at + 4 * _META * (number - 1)
        return self._view[at : at + KEY_BYTES]

    def _make_newest(self, number: int) -> None:
        meta, words = self._meta, self._words
        newest, at = words[_NEWEST], (number - 1) * _META
        meta[at + _NEWER], meta[at + _OLDER] = 0, newest
        if newest:
            meta[(newest - 1) * _META + _NEWER] = number
        else:
            words[_OLDEST] = number
        words[_NEWEST] = number

    def _take_out(self, number: int) -> None:
        """Of the order in which they were used."""
        meta, words = self._meta, self._words
        at = (number - 1) * _META
        newer, older = meta[at + _NEWER], meta[at + _OLDER]
        if newer:
            meta[(newer - 1) * _META + _OLDER] = older
        else:
            words[_NEWEST] = older
        if older:
            meta[(older - 1) * _META + _NEWER] = newer
        else:
            words[_OLDEST] = newer

    def _remove(self, number: int) -> None:
        """Give an entry's records back."""
        self._take_out(number)
        meta, words = self._meta, self._words
        bucket = self._bucket(bytes(self._key(number)))
        beside = meta[(number - 1) * _META + _BESIDE]
        before = self._buckets[bucket]
        if before == number:
            self._buckets[bucket] = beside
        else:
            while meta[(before - 1) * _META + _BESIDE] != number:
                before = meta[(before - 1) * _META + _BESIDE]
            meta[(before - 1) * _META + _BESIDE] = beside
        records = list(self._records(number))
        meta[(records[-1] - 1) * _META + _NEXT] = words[_FREE]
        words[_FREE] = number
        words[_LEFT] += len(records)
        words[_ENTRIES] -= 1

    # --- records ------------------------------------------------------------------------------------------------------

    def _records(self, number: int) -> Iterator[int]:
        while number:
            yield number
            number = self._meta[(number - 1) * _META + _NEXT]

    def _make_room(self, needed: int) -> bool:
        """Have so many records free. Returns whether that can be."""
        words = self._words
        while words[_LEFT] + (words[_LIMIT] or self._count) - words[_FRESH] < needed:
            if not words[_OLDEST]:
                return False
            self._remove(words[_OLDEST])
            words[_EVICTIONS] += 1
        return words[_LEFT] >= needed or self._grow(needed)

    def _grow(self, needed: int) -> bool:
        """See that there is memory for records that were never used. Where the machine has none, the cache stays as
        large as it is."""
        words = self._words
        wanted = min(self._count, words[_FRESH] + needed - words[_LEFT])
        if wanted <= words[_SURE]:
            return True
        wanted = min(self._count, max(wanted, words[_SURE] + _GROWTH))
        if self._file >= 0 and hasattr(os, "posix_fallocate"):
            grown = wanted - words[_SURE]
            try:
                if not words[_SURE]:
                    os.posix_fallocate(self._file, 0, self._meta_at)
                os.posix_fallocate(self._file, self._meta_at + 4 * _META * words[_SURE], 4 * _META * grown)
                os.posix_fallocate(self._file, self._data_at + _DATA * words[_SURE], _DATA * grown)
            except OSError as error:
                log.warning("the response cache cannot grow to its size: %s", error)
                words[_LIMIT] = words[_SURE]
                return words[_LIMIT] > 0 and self._make_room(needed)
        words[_SURE] = wanted
        return True

    def _write(self, key: bytes, value: memoryview, needed: int) -> None:
        meta, words = self._meta, self._words
        records: list[int] = []
        free = words[_FREE]
        while free and len(records) < needed:
            records.append(free)
            free = meta[(free - 1) * _META + _NEXT]
        words[_FREE], words[_LEFT] = free, words[_LEFT] - len(records)
        fresh, more = words[_FRESH], needed - len(records)
        records += range(fresh + 1, fresh + more + 1)
        words[_FRESH] = fresh + more
        for record, following in pairwise(records):
            meta[(record - 1) * _META + _NEXT] = following
        meta[(records[-1] - 1) * _META + _NEXT] = 0
        at = 0
        for begin, end in self._runs(records):
            piece = value[at : at + end - begin]
            self._view[begin : begin + len(piece)] = piece
            at += len(piece)
        number, bucket = records[0], self._bucket(key)
        self._key(number)[:] = key
        meta[(number - 1) * _META + _SIZE] = len(value)
        meta[(number - 1) * _META + _BESIDE] = self._buckets[bucket]
        self._buckets[bucket] = number
        self._make_newest(number)
        words[_ENTRIES] += 1

    def _read(self, number: int) -> bytes:
        size = self._meta[(number - 1) * _META + _SIZE]
        pieces, left = [], size
        for begin, end in self._runs(self._records(number)):
            pieces.append(self._view[begin : min(end, begin + left)])
            left -= end - begin
        return b"".join(pieces)

    def _runs(self, records: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Where the data of records lies, of those together that lie behind one another."""
        begin = end = 0
        for record in records:
            at = self._data_at + _DATA * (record - 1)
            if at != end:
                if end:
                    yield begin, end
                begin = at
            end = at + _DATA
        yield begin, end
