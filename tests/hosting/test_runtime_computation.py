"""The tensors of several requests as one call of a runtime, and its results as theirs again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.hosting.computation import Answer, Task
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime_computation import RuntimeComputation
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.hosting.wire import Infer, parts_of, tensors_of


class Sums:
    """Gives the sum of each row, and notes what it is called with."""

    platform, batches, concurrent = "sums", True, True
    outputs = (TensorSpec(name="sum", datatype=Datatype.FP32, dims=()),)

    def __init__(self, *, ragged: bool = False, rows_missing: int = 0) -> None:
        self.inputs = (TensorSpec(name="x", datatype=Datatype.FP32, dims=(ANY,), ragged=ragged),)
        self.calls: list[tuple[int, ...]] = []
        self._rows_missing = rows_missing

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        x = inputs["x"]
        self.calls.append(x.shape)
        if (x < 0).any():
            raise RuntimeError("it is negative")
        sums = x.sum(-1) if x.ndim > 1 else np.repeat(x.sum(), 2)
        return {"sum": sums[self._rows_missing :].astype(np.float32)}


def task(computation: RuntimeComputation, rows: Any) -> Task:
    inputs = {"x": Encoded.of(Tensor(Datatype.FP32, np.array(rows, np.float32)))}
    return computation.read(Infer(1, parts_of(inputs), 0.0), memoryview(bytes(inputs["x"].data)))


def values(answer: Answer | InferenceError) -> list[float]:
    assert isinstance(answer, Answer)
    found = tensors_of(answer.parts, memoryview(b"".join(map(bytes, answer.buffers))))
    return found["sum"].decode(Place("sum", "it")).array.tolist()  # type: ignore[no-any-return]


def test_requests_are_one_call_and_each_gets_its_rows() -> None:
    runtime = Sums()
    computation = RuntimeComputation(runtime, "sums", batched=True)
    tasks = [task(computation, rows) for rows in ([[1, 2]], [[3, 4], [5, 6]])]
    assert [each.items for each in tasks] == [1, 2]
    assert [values(each) for each in computation.compute(tasks)] == [[3], [7, 11]]
    assert runtime.calls == [(3, 2)]


def test_other_sizes_are_another_kind_unless_they_may_be_ragged() -> None:
    shapes = ([[1, 2]], [[1, 2, 3]])
    plain = RuntimeComputation(Sums(), "sums", batched=True)
    first, second = (task(plain, rows) for rows in shapes)
    assert first.kind != second.kind
    runtime = Sums(ragged=True)
    ragged = RuntimeComputation(runtime, "sums", batched=True)
    tasks = [task(ragged, rows) for rows in shapes]
    assert tasks[0].kind == tasks[1].kind
    ragged.compute(tasks)
    assert runtime.calls == [(5,)]  # one behind the other, as Triton has them


def test_the_request_that_is_to_blame_fails_alone() -> None:
    computation = RuntimeComputation(Sums(), "sums", batched=True)
    good, bad = computation.compute([task(computation, [[1, 2]]), task(computation, [[-1, 2]])])
    assert values(good) == [3]
    assert isinstance(bad, InferenceError)
    assert (bad.code, str(bad)) == (Code.INTERNAL, "sums failed: RuntimeError: it is negative")


def test_a_runtime_that_gives_too_few_rows() -> None:
    computation = RuntimeComputation(Sums(rows_missing=1), "sums", batched=True)
    [failed] = computation.compute([task(computation, [[1, 2]])])
    with pytest.raises(InferenceError, match="the output 'sum' has 0 rows for 1"):
        raise failed  # type: ignore[misc]
