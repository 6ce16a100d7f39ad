"""Blocks of shared memory: large tensors are not in what goes through the socket, and come back when nobody looks."""

import sys

import numpy as np
import pytest

from octavo.hosting.blocks import LEAST_BYTES, Lender
from octavo.hosting.datatypes import Datatype
from octavo.hosting.tensors import Encoded, Place
from octavo.hosting.wire import Infer, Part, Reader, Returned, Writer, requests

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


def test_free_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.hosting.blocks.MOST_FREE_BYTES", 2 * LEAST_BYTES)
    lender = Lender()
    lent = [lender.lend([b"x"], LEAST_BYTES) for _ in range(3)]
    numbers = [each[0] for each in lent if each is not None]
    assert len(numbers) == 3
    assert [(each.number, each.size) for each in lender.take_back(numbers)] == [(numbers[2], 0)]
    lender.close()
