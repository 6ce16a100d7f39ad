"""The best classes of an output, against a sort in Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.server.inference.classification import classify

PLACE = Place("OUT", "m")
ORDERED = [each for each in Datatype if each not in ("BOOL", "FP16", "BF16", "BYTES")]


@given(st.data())
def test_the_largest_values_come_first(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(ORDERED))
    array = data.draw(hnp.arrays(datatype.dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
    classes = data.draw(st.integers(1, 8))
    found = classify(Encoded.of(Tensor(datatype, array)), classes, PLACE, batched=True).decode(PLACE).array
    for row, texts in zip(array.tolist(), found.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: (-np.inf if row[i] != row[i] else row[i], -i), reverse=True)
        indices = [int(text.decode().split(":")[1]) for text in texts]
        assert len(indices) == min(classes, len(row))
        assert [(row[i] if row[i] == row[i] else -np.inf) for i in indices] == [
            (row[i] if row[i] == row[i] else -np.inf) for i in ranked[: len(indices)]
        ]
        for text, index in zip(texts, indices, strict=True):
            value = row[index]
            assert text.decode() == (f"{value:f}:{index}" if isinstance(value, float) else f"{value}:{index}")


def test_without_a_batch_dimension_all_of_it_is_one_item() -> None:
    output = Encoded.of(Tensor(Datatype.FP32, np.array([[0.5, 2], [1, 2]], "f4")))
    found = classify(output, 3, PLACE, batched=False, labels=("", "dog", "")).decode(PLACE).array
    assert found.tolist() == [b"2.000000:1:dog", b"2.000000:3", b"1.000000:2"]


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_what_has_no_order_has_no_best(datatype: str) -> None:
    kind = Datatype(datatype)
    output = Encoded.of(Tensor(kind, np.zeros((1, 0), kind.dtype)))
    with pytest.raises(InferenceError, match=f"class result not available for output .* '{datatype}'"):
        classify(output, 1, PLACE, batched=True)
