"""What is written down of a request that is traced: tensors as Triton's tools read them, and when a trace has ended."""

import csv
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.tensors import Encoded, Tensor
from octavo.hosting.trace import TENSORS, TIMESTAMPS, Trace, find
from octavo.hosting.wire import Output, parts_of


def traced(*levels: str) -> tuple[Trace, list[Trace]]:
    ended: list[Trace] = []
    return Trace(levels, ended.append), ended


def as_read(tensor: dict[str, str]) -> NDArray[Any]:
    """As `trace_summary.py` of Triton reads it."""
    shape = [int(each) for each in tensor["shape"].split(",")]
    if tensor["dtype"] == "BYTES":
        values: list[Any] = next(csv.reader([tensor["data"]], skipinitialspace=True))
    else:
        values = [float(each) for each in tensor["data"].split(",")]
    return np.array(values).reshape(shape)


@pytest.mark.parametrize(
    ("datatype", "array", "written"),
    [
        (Datatype.INT64, np.array([[1, -(2**40)]]), "1,-1099511627776"),
        (Datatype.UINT8, np.array([255], np.uint8), "255"),
        (Datatype.BOOL, np.array([True, False]), "1,0"),
        (Datatype.FP32, np.array([1, 0.1, -2.5e-9, np.nan], np.float32), "1,0.1,-2.5e-09,nan"),
        (Datatype.FP16, np.array([0.5], np.float16), "0.5"),
        (Datatype.BF16, np.array([0x3FC0], np.uint16), "1.5"),
        (Datatype.BYTES, np.array([b"one", b'a "b", c', b"\xff"], object), '"one","a ""b"", c","\\xff"'),
    ],
)
def test_tensors_are_texts(datatype: Datatype, array: NDArray[Any], written: str) -> None:
    trace, _ = traced(TENSORS)
    encoded = {"x": Encoded.of(Tensor(datatype, array))}
    trace.root.start("model", "3", 0.0, parts_of(encoded), [each.data for each in encoded.values()])
    head, entry = trace.entries(7)
    assert head == {"id": 7, "model_name": "model", "model_version": 3}
    assert (entry["id"], entry["activity"]) == (7, "TENSOR_QUEUE_INPUT")
    assert entry["tensor"] == {
        "name": "x",
        "data": written,
        "shape": ",".join(map(str, array.shape)),
        "dtype": datatype.value,
    }
    assert as_read(entry["tensor"]).shape == array.shape


def test_a_trace_ends_with_the_last_of_what_comes_of_it() -> None:
    trace, ended = traced(TIMESTAMPS)
    root = trace.root
    assert not trace.began
    root.start("one", "1", 0.0, (), ())
    child = find(root.number).child()  # type: ignore[union-attr]
    child.start("two", "1", 0.0, (), ())
    root.result(Output(0), memoryview(b""))
    root.end()
    trace.close()
    assert not ended
    assert trace.goes_on
    child.end()
    assert ended == [trace]
    assert find(root.number) is None, "nothing more is added"
    heads = [each for each in trace.entries(1) if "model_name" in each]
    assert heads[1] == {"id": 2, "model_name": "two", "model_version": 1, "parent_id": 1}
