"""The memory that answers are kept in: what is there, what goes first, and what a process that dies leaves."""

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.hosting import response_cache
from octavo.hosting.response_cache import LEAST_BYTES, CacheMemory, ResponseCache, cache_file
from tests.properties import examples

RECORD = 476
"""Bytes of a value that take one record."""


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


@pytest.fixture
def memory() -> Iterator[CacheMemory]:
    size = 1 << 16
    file = cache_file(size)
    yield CacheMemory(file, size, shared=True)
    os.close(file)


def test_what_is_put_there_is_found_whole() -> None:
    cache = ResponseCache(1 << 20)
    values = [b"", b"x", os.urandom(RECORD), os.urandom(RECORD + 1), os.urandom(100_000)]
    for number, value in enumerate(values):
        assert cache.get(key(number)) is None
        assert cache.put(key(number), [value[:5], memoryview(value)[5:]])
    assert [cache.get(key(number)) for number in range(len(values))] == values
    figures = cache.figures
    assert (figures.entries, figures.hits, figures.misses, figures.evictions) == (5, 5, 5, 0)
    assert 0 < figures.utilization < 0.2
    assert figures.lookup_time > 0
    assert figures.insertion_time > 0


def test_what_is_there_is_not_replaced() -> None:
    cache = ResponseCache(LEAST_BYTES)
    assert cache.put(key(1), [b"first"])
    assert cache.put(key(1), [b"second"])
    assert cache.get(key(1)) == b"first"
    assert cache.figures.entries == 1


def test_what_is_larger_than_the_cache_is_not_kept_and_nothing_goes_for_it() -> None:
    cache = ResponseCache(LEAST_BYTES)
    assert cache.put(key(1), [b"small"])
    assert not cache.put(key(2), [bytes(LEAST_BYTES)])
    assert cache.get(key(1)) == b"small"
    assert cache.get(key(2)) is None


@pytest.mark.hypothesis
@examples(100)
@given(
    st.integers(2, 12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 5 * RECORD)), max_size=80),
)
def test_it_is_a_bounded_lru(records: int, steps: list[tuple[bool, int, int]]) -> None:
    """As a dictionary is one that forgets what was used longest ago, until there are records enough."""
    cache = ResponseCache(records * (RECORD + 40) + 128)
    known: OrderedDict[int, bytes] = OrderedDict()
    evicted = 0

    def used() -> int:
        return sum(max(-(-len(each) // RECORD), 1) for each in known.values())

    for puts, number, size in steps:
        if not puts:
            assert cache.get(key(number)) == known.get(number)
            if number in known:
                known.move_to_end(number)
            continue
        value, needed = bytes([number]) * size, max(-(-size // RECORD), 1)
        assert cache.put(key(number), [value]) is (number in known or needed <= records)
        if number in known or needed > records:
            continue
        while used() + needed > records:
            known.popitem(last=False)
            evicted += 1
        known[number] = value
    figures = cache.figures
    assert (figures.entries, figures.evictions) == (len(known), evicted)
    assert figures.utilization == used() / records
    assert all(cache.get(key(number)) == value for number, value in known.items())


def test_processes_share_it(memory: CacheMemory) -> None:
    one, other = ResponseCache(memory.size, memory), ResponseCache(memory.size, memory)
    assert one.put(key(1), [b"of one"])
    assert other.get(key(1)) == b"of one"
    assert other.put(key(2), [b"of the other"])
    assert one.get(key(2)) == b"of the other"
    assert one.figures == other.figures


DIES = """
import os, sys
from octavo.hosting.response_cache import CacheMemory, ResponseCache

cache = ResponseCache(int(sys.argv[2]), CacheMemory(int(sys.argv[1]), int(sys.argv[2]), shared=True))
cache.put(b"2" * 16, [b"whole"])
cache._write = lambda *given: os._exit(9)  # in the midst of a change
cache.put(b"3" * 16, [b"half"])
"""


def test_a_process_that_dies_in_there_leaves_no_lock_and_nothing_that_is_wrong(memory: CacheMemory) -> None:
    cache = ResponseCache(memory.size, memory)
    cache.put(key(1), [b"before"])
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(memory.file), str(memory.size)], pass_fds=[memory.file], check=False
    )
    assert died.returncode == 9
    assert cache.get(key(1)) is None
    assert cache.get(b"2" * 16) is None
    assert cache.figures.entries == 0
    for number in range(300):
        assert cache.put(key(number), [bytes(100)])
    assert cache.get(key(299)) == bytes(100)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="memory is not asked for")
def test_a_machine_without_memory_has_a_smaller_cache(
    memory: CacheMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(response_cache, "_GROWTH", 4)
    taken: list[int] = []

    def allocate(file: int, offset: int, length: int) -> None:
        taken.append(length)
        if len(taken) > 7:  # three for the first four records, two for each four more
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    cache = ResponseCache(memory.size, memory)
    for number in range(20):
        assert cache.put(key(number), [b"x"])
    assert [number for number in range(20) if cache.get(key(number))] == list(range(8, 20))
    assert "cannot grow to its size: [Errno 28] No space left on device" in caplog.text
