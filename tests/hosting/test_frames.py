"""Frames, however they are cut on their way."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.hosting.frames import MAX_HEAD, SIZES, Reader, Writer, replies, requests
from octavo.hosting.wire import Cancel, Failed, Infer, Output, Part

TEXT = st.text(max_size=8)
PARTS = st.lists(st.tuples(TEXT, st.lists(st.integers(0, 2**62), max_size=3), st.binary(max_size=40)), max_size=3)
MESSAGES = st.lists(
    st.tuples(st.integers(0, 2**63), PARTS, st.sampled_from(["infer", "cancel"]), st.lists(TEXT, max_size=2)),
    max_size=5,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(edges)]


@pytest.mark.hypothesis
@given(MESSAGES, st.lists(st.integers(0, 2000), max_size=12))
def test_what_is_sent_arrives_however_it_is_cut(messages: list, places: list[int]) -> None:
    sent = []
    data = b""
    for number, parts, kind, outputs in messages:
        tensors = [tensor for _, _, tensor in parts]
        described = tuple(Part(name, "FP32", tuple(shape), len(tensor)) for name, shape, tensor in parts)
        message = Infer(number, described, 1.5, tuple(outputs), 3, 0.5) if kind == "infer" else Cancel(number)
        tensors = tensors if kind == "infer" else []
        sent.append((message, b"".join(tensors)))
        data += b"".join(Writer().frame(message, tensors))
    frames = Reader(requests)
    found = [(message, bytes(tensors)) for piece in cut(data, places) for message, tensors in frames.feed(piece)]
    assert found == sent


def test_replies() -> None:
    sent = [
        Output(1, (Part("a", "INT8", (2,), 2),)),
        Failed(2, "internal", "it failed"),
        Failed(3, "unavailable", "", 1.5),
    ]
    data = b"".join(b"".join(Writer().frame(each, [b"xy"] if isinstance(each, Output) else [])) for each in sent)
    assert [message for message, _ in Reader(replies).feed(data)] == sent


def test_tensors_are_any_buffers() -> None:
    arrays = [np.arange(4, dtype=np.float32), np.zeros((0, 3)), np.ones((2, 3), np.int64)]
    parts = tuple(Part("x", "FP32", each.shape, each.nbytes) for each in arrays)
    data = b"".join(Writer().frame(Infer(1, parts, 1.5), [each.ravel().data for each in arrays])) + b"".join(
        Writer().frame(Cancel(2))
    )
    [(infer, tensors), (cancel, _)] = Reader(requests).feed(data)
    assert (infer, cancel) == (Infer(1, parts, 1.5), Cancel(2))
    assert bytes(tensors) == b"".join(each.tobytes() for each in arrays)


def test_what_is_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match="a message of"):
        Writer().frame(Failed(1, "internal", "x" * (MAX_HEAD + 1)))


@pytest.mark.parametrize("data", [SIZES.pack(MAX_HEAD + 1, 0, 0), SIZES.pack(3, 0, 0) + b"\xc1\xc1\xc1"])
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Reader(requests).feed(data)
