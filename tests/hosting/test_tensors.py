"""Tensors as bytes and as JSON, with Triton's client as the oracle."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.http import InferInput
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import MAX_ELEMENTS, Place, Tensor, element_count, from_bytes, from_json, to_bytes
from tests.properties import examples

PLACE = Place("INPUT0", "m")
NUMBERS = [each for each in Datatype if each not in (Datatype.BYTES, Datatype.BF16)]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def arrays(datatype: Datatype) -> st.SearchStrategy[np.ndarray]:
    if datatype is Datatype.BYTES:
        return npst.arrays(object, SHAPES, elements=st.binary(max_size=20))
    return npst.arrays(datatype.dtype, SHAPES, elements={"allow_nan": False} if "FP" in datatype else None)


ANY_TENSOR = st.sampled_from([*NUMBERS, Datatype.BYTES]).flatmap(
    lambda datatype: st.tuples(st.just(datatype), arrays(datatype))
)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and found.tolist() == expected.tolist()


def sent(datatype: Datatype, array: np.ndarray, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """What Triton's client writes."""
    tensor = InferInput("INPUT0", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor._get_tensor(), tensor._get_binary_data() or b""


@pytest.mark.hypothesis
@given(ANY_TENSOR)
def test_bytes_are_those_of_tritons_client(drawn: tuple[Datatype, np.ndarray]) -> None:
    datatype, array = drawn
    described, data = sent(datatype, array, binary=True)
    assert described["datatype"] == datatype
    assert to_bytes(Tensor(datatype, array)) == data
    assert same(from_bytes(datatype, array.shape, memoryview(data), PLACE).array, array)


@pytest.mark.hypothesis
@given(ANY_TENSOR, st.booleans())
def test_values_of_json_are_those_of_tritons_client(drawn: tuple[Datatype, np.ndarray], nested: bool) -> None:
    datatype, array = drawn
    if datatype is Datatype.FP16:
        with pytest.raises(InferenceError, match="receiving FP16 data via JSON is not supported"):
            from_json(datatype, array.shape, array.ravel().tolist(), PLACE)
        return
    if datatype is Datatype.BYTES:  # which JSON has as text
        array = np.vectorize(lambda each: each.hex().encode(), otypes=[object])(array).reshape(array.shape)
    described, _ = sent(datatype, array, binary=False)
    data = json.loads(json.dumps(described["data"]))
    if nested and array.ndim and datatype is not Datatype.BYTES:
        data = array.tolist()
    assert same(from_json(datatype, array.shape, data, PLACE).array, array)


def test_names_and_types_are_those_of_tritons_client() -> None:
    for datatype in NUMBERS:
        assert np_to_triton_dtype(datatype.dtype) == datatype
        assert triton_to_np_dtype(datatype) == datatype.dtype
        assert Datatype.of(datatype.dtype) is datatype
        assert Datatype.of(datatype.dtype.newbyteorder(">")) is datatype
        assert datatype.itemsize == datatype.dtype.itemsize
    assert Datatype.of(np.array([b"x"], object).dtype) is Datatype.BYTES
    for other in (np.array(["text"]), np.array([b"x"]), np.array([1j])):
        with pytest.raises(ValueError, match=f"no tensor has elements of type {other.dtype}"):
            Datatype.of(other.dtype)
    with pytest.raises(TypeError, match="elements of BYTES are bytes, not int, str"):
        to_bytes(Tensor(Datatype.BYTES, np.array(["a", b"b", 1], object)))


@pytest.mark.hypothesis
@given(st.lists(st.binary(max_size=6), max_size=4), st.binary(max_size=12), st.integers(0, 8), st.integers(0, 6))
def test_elements_of_bytes_that_are_not_whole_are_refused(
    elements: list[bytes], rest: bytes, cut: int, count: int
) -> None:
    """Whatever is cut off, added or miscounted: what is taken is what Triton's client reads."""
    written = serialize_byte_tensor(np.array([*elements, b""], object)[:-1])
    data = (written.item() if written.size else b"") + rest
    data = data[: len(data) - cut] if cut else data
    try:
        read = list(deserialize_bytes_tensor(data))
    except struct.error:
        read = None
    # The client takes a last element that is cut.
    whole = read is not None and len(read) == count and len(data) == sum(4 + len(each) for each in read)
    if whole:
        assert from_bytes(Datatype.BYTES, [count], memoryview(data), PLACE).array.tolist() == read
    else:
        with pytest.raises(InferenceError, match="input 'INPUT0' for model 'm'"):
            from_bytes(Datatype.BYTES, [count], memoryview(data), PLACE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([-1], r"contains an invalid dimension in shape \[-1\]"),
        ([2, -(2**62)], "contains an invalid dimension"),
        ([2**62, 2], "exceeds maximum size of"),
        ([2**40, 2**40, 0], "exceeds maximum size of"),
        ([0, 2**61], "exceeds maximum size of"),
        ([1] * 33, "33 dimensions, more than 32"),
        ([3], "Expected 12, got 8"),
        ([MAX_ELEMENTS], "byte size mismatch"),
    ],
)
def test_shapes_that_no_data_has_are_refused(shape: list[int], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        from_bytes(Datatype.FP32, shape, memoryview(bytes(8 if 0 not in shape else 0)), PLACE)
    if "Expected" not in message and "mismatch" not in message:
        with pytest.raises(InferenceError, match=message):
            element_count(shape, PLACE)


@pytest.mark.parametrize(
    ("datatype", "data", "message"),
    [
        (Datatype.INT8, [1, 128], "has values that do not fit INT8"),
        (Datatype.UINT64, [1, -1], "has values that do not fit UINT64"),
        (Datatype.UINT64, [1, 2**64], "has values that do not fit UINT64"),
        (Datatype.INT32, [1, 2.5], "another type: numbers"),
        (Datatype.INT32, [True, 1], "another type: booleans"),
        (Datatype.BOOL, [1, True], "another type: integers"),
        (Datatype.FP32, ["1", None], "another type: null, strings"),
        (Datatype.FP32, [1, 1e39], "do not fit FP32"),
        (Datatype.FP64, [10**400, 1], "do not fit FP64"),
        (Datatype.BYTES, [b"x".decode(), 1], "another type: integers"),
        (Datatype.FP32, [[1], 2], "lists beside values"),
        (Datatype.FP32, [[1, 2], [3]], "Shape does not match true shape of 'data' field"),
        (Datatype.FP32, [{}, 1], "another type: objects"),
        (Datatype.FP32, {"0": 1}, "is no list"),
        (Datatype.BF16, [1, 2], "BF16 data via JSON is not supported"),
    ],
)
def test_values_that_the_type_does_not_have_are_refused(datatype: Datatype, data: object, message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        from_json(datatype, [2], data, PLACE)


def test_any_byte_is_a_boolean() -> None:
    found = from_bytes(Datatype.BOOL, [4], memoryview(b"\x00\x01\x02\xff"), PLACE).array
    assert found.tolist() == [False, True, True, True]
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.hypothesis
@examples(50)
@given(npst.arrays(np.float32, 5, elements=st.floats(-1e4, 1e4, width=32)))
def test_bf16_keeps_its_bits(values: np.ndarray) -> None:
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    data = to_bytes(Tensor(Datatype.BF16, bits))
    assert len(data) == 5 * Datatype.BF16.itemsize
    assert from_bytes(Datatype.BF16, [5], memoryview(data), PLACE).array.tolist() == bits.tolist()


@pytest.mark.hypothesis
@given(
    st.sampled_from(list(Datatype)),
    st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**60, 2**61, 2**62, 2**63, -1]), max_size=4),
    st.binary(max_size=16),
)
def test_whatever_is_sent_is_a_tensor_or_the_clients_mistake(datatype: Datatype, shape: list[int], data: bytes) -> None:
    for read in (from_bytes, from_json):
        try:
            found = read(datatype, shape, memoryview(data) if read is from_bytes else [], PLACE)  # type: ignore[operator]
        except InferenceError:
            continue
        assert found.array.shape == tuple(shape)
