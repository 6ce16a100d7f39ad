"""Blocks of shared memory: large tensors are not in what goes through the socket, and come back when nobody looks."""

import gc
import os
import sys
from collections import deque

import numpy as np
import pytest

from octavo.hosting.blocks import LEAST_BYTES, SPARE_SECONDS, Borrower, Lender, News, _room
from octavo.hosting.datatypes import Datatype
from octavo.hosting.frames import Reader, Writer, requests
from octavo.hosting.tensors import Encoded, Place
from octavo.hosting.wire import Infer, Part, Returned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all goes through the socket")

MESSAGE = Infer(1, (Part("x", "UINT8", (LEAST_BYTES,), LEAST_BYTES),), 1.5)


def sent(writer: Writer, data: bytes) -> bytes:
    return b"".join(writer.frame(MESSAGE, [data]))


def test_what_is_large_does_not_go_through_the_socket() -> None:
    writer, reader = Writer(), Reader(requests)
    for fill in (b"a", b"b"):  # in the second block, while the first is lent
        data = fill * LEAST_BYTES
        frame = sent(writer, data)
        assert len(frame) < 1000
        [(message, view)] = reader.feed(frame)
        assert message == MESSAGE
        assert bytes(view) == data
    assert len(sent(writer, b"c" * (LEAST_BYTES - 1))) > LEAST_BYTES - 1


def test_a_block_is_given_back_when_nobody_looks_at_it_any_more() -> None:
    writer, reader = Writer(), Reader(requests)
    [(_, view)] = reader.feed(sent(writer, b"a" * LEAST_BYTES))
    kept = np.frombuffer(view[10:20], np.uint8)
    del view
    assert reader.returned() is None
    assert kept.tolist() == [ord("a")] * 10
    del kept
    assert reader.returned() == Returned((1,))
    assert reader.returned() is None


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.BOOL, Datatype.INT8])
def test_a_block_is_lent_for_as_long_as_there_is_a_tensor_of_it(datatype: Datatype) -> None:
    writer, reader = Writer(), Reader(requests)
    [(_, view)] = reader.feed(sent(writer, b"\1" * LEAST_BYTES))
    shape = (2, LEAST_BYTES // datatype.itemsize // 2)
    array = Encoded(datatype, shape, view[:]).decode(Place("x", "it")).array
    row = array[1:]
    del view, array
    assert reader.returned() is None
    del row
    assert reader.returned() == Returned((1,))


def test_a_block_that_came_back_is_lent_again_without_a_word() -> None:
    writer, reader = Writer(), Reader(requests)
    reader.feed(sent(writer, b"a" * LEAST_BYTES))
    returned = reader.returned()
    assert returned is not None
    assert writer.take_back(returned) == b""
    again = sent(writer, b"b" * LEAST_BYTES)
    [(_, view)] = reader.feed(again)
    assert bytes(view[:3]) == b"bbb"
    assert b"/proc/" not in again


def test_two_threads_may_ask_at_once_what_is_to_be_given_back() -> None:
    class Contended(deque[int]):
        """When somebody sees that there is something, another thread has taken it already."""

        def __len__(self) -> int:
            size = super().__len__()
            self.clear()
            return size

    reader = Borrower()
    reader._ended = Contended([1, 2])
    assert reader.ended() == [1, 2]
    assert reader.ended() == []


def test_a_block_that_was_opened_takes_a_descriptor_of_each_side() -> None:
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    writer, reader = Writer(), Reader(requests)
    for _ in range(2):
        views = [reader.feed(sent(writer, b"a" * LEAST_BYTES)) for _ in range(8)]
        views.clear()
        returned = reader.returned()
        assert returned is not None
        writer.take_back(returned)
        assert len(os.listdir("/proc/self/fd")) == before + 2 * 8
    writer.close()
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_blocks_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.hosting.blocks.MOST_BLOCKS", 4)
    monkeypatch.setattr("octavo.hosting.blocks.MOST_FREE_BLOCKS", 2)
    lender = Lender()
    for _ in range(2):
        lent = [lender.lend([b"x"], LEAST_BYTES) for _ in range(6)]
        numbers = [each[0] for each in lent if each is not None]
        assert [each is None for each in lent] == [False] * 4 + [True] * 2
        assert [each.number for each in lender.take_back(numbers)] == numbers[2:]
    assert lender.lend([b"x"], 2 * LEAST_BYTES) is not None  # what is free takes not all the room
    lender.close()


def test_free_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.hosting.blocks.MOST_FREE_BYTES", 2 * LEAST_BYTES)
    lender = Lender()
    lent = [lender.lend([b"x"], LEAST_BYTES) for _ in range(3)]
    numbers = [each[0] for each in lent if each is not None]
    assert len(numbers) == 3
    assert [(each.number, each.size) for each in lender.take_back(numbers)] == [(numbers[2], 0)]
    lender.close()


def test_blocks_that_nothing_comes_for_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("octavo.hosting.blocks.time.monotonic", lambda: clock[0])
    lender, data = Lender(), bytes(LEAST_BYTES)

    def burst(count: int) -> list[News]:
        lent = [lender.lend([data], len(data)) for _ in range(count)]
        return lender.take_back([each[0] for each in lent if each is not None])

    assert burst(8) == []
    clock[0] += SPARE_SECONDS + 1
    burst(8)  # all of them were needed
    for _ in range(3):
        clock[0] += SPARE_SECONDS + 1
        news = burst(2)
    assert [len(each) for each in lender._free.values()] == [2]
    assert (lender._blocks, lender._bytes, lender._free_bytes) == (2, 2 * LEAST_BYTES, 2 * LEAST_BYTES)
    assert all(each.size == 0 for each in news)
    assert burst(8) == []
    assert lender._blocks == 8
    for _ in range(2):
        clock[0] += SPARE_SECONDS
        lender.take_back([])
    assert not lender.has_blocks


@pytest.mark.parametrize("size", [LEAST_BYTES, LEAST_BYTES + 1, 3 * 2**20, 5 * 2**20 + 1, 2**30 - 1])
def test_a_block_has_not_much_more_room_than_is_wanted(size: int) -> None:
    assert size <= _room(size) <= size + size // 4
    assert _room(size) % 4096 == 0
    assert _room(_room(size)) == _room(size)


def test_what_is_a_little_larger_is_taken_before_another_one_is_made() -> None:
    lender = Lender()
    numbers = {size: lender.lend([b"x"], size * LEAST_BYTES)[0] for size in (2, 4, 6)}  # type: ignore[index]
    lender.take_back(numbers.values())
    wanted = [lender.lend([b"x"], size * LEAST_BYTES) for size in (3, 4, 4)]
    assert [each[0] for each in wanted if each is not None] == [numbers[4], numbers[6], 4]
    assert lender.lend([b"x"], LEAST_BYTES) == (numbers[2], [])
    lender.close()
