"""Requests that do not keep to what a model takes, in Triton's words."""

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import ANY, Signature, TensorSpec, first_dims_are_free, without_batch
from octavo.hosting.tensors import Tensor

A = TensorSpec(name="A", datatype=Datatype.FP32, dims=(ANY, 3))
B = TensorSpec(name="B", datatype=Datatype.INT64, dims=(), optional=True)
OUT = TensorSpec(name="OUT", datatype=Datatype.FP32, dims=(ANY,))
PLAIN = Signature("m", (A,), (OUT,))
BATCHED = Signature("m", (A, B), (OUT,), max_batch_size=4)


def fp32(*shape: int) -> Tensor:
    return Tensor(Datatype.FP32, np.zeros(shape, np.float32))


def int64(*shape: int) -> Tensor:
    return Tensor(Datatype.INT64, np.zeros(shape, np.int64))


def test_what_keeps_to_it() -> None:
    assert PLAIN.check({"A": fp32(0, 3)}) == 1
    assert PLAIN.check({"A": fp32(7, 3)}, ["OUT"]) == 1
    assert BATCHED.check({"A": fp32(4, 9, 3)}) == 4
    assert BATCHED.check({"B": int64(2), "A": fp32(2, 9, 3)}) == 2
    assert BATCHED.full_dims(A) == (ANY, ANY, 3)
    assert PLAIN.full_dims(A) == (ANY, 3)


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (PLAIN, {}, "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required "),
        (BATCHED, {}, "expected number of inputs between 1 and 2 but got 0 inputs"),
        (BATCHED, {"B": int64(1)}, "Got input(s) ['B'], but missing required input(s) ['A']. Please provide all"),
        (PLAIN, {"A": fp32(1, 3), "X": fp32(1)}, "unexpected inference input 'X' for model 'm'"),
        (PLAIN, {"A": int64(1, 3)}, "input 'A' data-type is 'INT64', but model 'm' expects 'FP32'"),
        (PLAIN, {"A": fp32(3)}, "unexpected shape for input 'A' for model 'm'. Expected [-1,3], got [3]."),
        (PLAIN, {"A": fp32(1, 4)}, "Expected [-1,3], got [1,4]."),
        (BATCHED, {"A": fp32(1, 3)}, "Expected [-1,-1,3], got [1,3]. The first dimension is that of the batch."),
        (BATCHED, {"A": fp32(5, 1, 3)}, "inference request batch-size must be <= 4 for 'm', and is 5"),
        (BATCHED, {"A": fp32(0, 1, 3)}, "inference request batch-size must be >= 1 for 'm'"),
        (BATCHED, {"A": fp32(2, 1, 3), "B": int64(3)}, "input 'B' batch size does not match other inputs for 'm'"),
        (BATCHED, {"A": fp32()}, "input 'A' has no shape but model requires batch dimension for 'm'"),
    ],
)
def test_what_does_not(signature: Signature, inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        signature.check(inputs)
    assert message in str(caught.value)


def test_an_unknown_output() -> None:
    with pytest.raises(InferenceError, match="unexpected inference output 'X' for model 'm'"):
        PLAIN.check({"A": fp32(1, 3)}, ["OUT", "X"])


def test_what_a_model_does_not_say() -> None:
    free = TensorSpec(name="A", datatype=None, dims=None)
    for size, items in ((0, 1), (4, 3)):
        signature = Signature("m", (free,), (OUT,), max_batch_size=size)
        assert signature.check({"A": fp32(3, 5)}) == items
        assert signature.check({"A": int64(3)}) == items


@pytest.mark.parametrize(
    ("dims", "free"),
    [
        ([(ANY, 3), (ANY,), (ANY, ANY)], True),
        ([(ANY, 3), (2,)], False),
        ([(ANY, 3), ()], False),
        ([(ANY, 3), None], None),
        ([(2, 3), None], False),
        ([None], None),
    ],
)
def test_whether_the_first_dimensions_can_be_that_of_a_batch(
    dims: list[tuple[int, ...] | None], free: bool | None
) -> None:
    specs = [TensorSpec(name="A", datatype=Datatype.FP32, dims=each) for each in dims]
    assert first_dims_are_free(specs) is free
    if free:
        assert [spec.dims for spec in without_batch(specs)] == [(3,), (), (ANY,)]
