"""Tensors as nested JSON."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.server.inference.nested import dump, from_tensor, to_tensor
from tests.server.inference.fake import FakeClient

Models = dict[str, FakeClient]


@settings(max_examples=40)
@given(st.data())
def test_nested_lists_are_arrays(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(list(Datatype)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3))
    place, spec = Place("IN", "m"), TensorSpec(name="IN", datatype=datatype, dims=None)
    if datatype is Datatype.BYTES:
        array: Any = data.draw(hnp.arrays(object, shape, elements=st.binary(max_size=3), fill=st.nothing()))
    elif datatype is Datatype.BF16:
        array = data.draw(hnp.arrays("<u2", shape, elements=st.integers(0, 0x7F7F)))
    else:
        elements = {"allow_nan": False, "allow_infinity": False} if datatype.dtype.kind == "f" else None
        array = data.draw(hnp.arrays(datatype.dtype, shape, elements=elements))
    written = json.loads(dump({"x": from_tensor(Encoded.of(Tensor(datatype, array)), place)}))["x"]
    found = to_tensor(spec, written, place)
    assert found.datatype is datatype
    np.testing.assert_array_equal(found.array, array)


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1, 2], [3], [4, 5, 6]], [1, [2]]])
def test_rows_have_one_length(value: Any) -> None:
    with pytest.raises(InferenceError, match=r"rows of different lengths|lists beside values"):
        to_tensor(TensorSpec(name="IN", datatype=Datatype.FP32, dims=None), value, Place("IN", "m"))


def test_one_item_is_an_object_of_its_tensors(web: httpx.Client, models: Models) -> None:
    answer = web.post("/v1/models/pair/predict", json={"IN": [1.5, 2], "IN2": [3]})
    assert answer.json() == {"OUT": [1.5, 2.0], "OUT2": [3]}
    assert models["pair"].seen is not None
    assert models["pair"].seen.inputs["IN"].shape == (1, 2)
    half = web.post("/v1/models/FP16/predict", json={"IN": [[0.5]]})
    assert half.json() == {"OUT": [[0.5]]}


def test_instances_go_to_the_model_in_batches(web: httpx.Client, models: Models) -> None:
    before = models["classes"].statistics.executions
    rows = [[float(each), 0.0, 1.0] for each in range(10)]
    answer = web.post("/v1/models/classes:predict", json={"instances": rows})
    assert answer.json() == {"predictions": rows}
    assert models["classes"].statistics.executions == before + 2


def test_instances_of_several_tensors_and_shapes(web: httpx.Client) -> None:
    instances = [{"IN": [1, 2], "IN2": [3]}, {"IN": [4, 5], "IN2": [6, 7]}]
    answer = web.post("/v1/models/pair:predict", json={"instances": instances})
    assert answer.json() == {"predictions": [{"OUT": [1.0, 2.0], "OUT2": [3]}, {"OUT": [4.0, 5.0], "OUT2": [6, 7]}]}


def test_inputs_are_columns(web: httpx.Client) -> None:
    answer = web.post("/v1/models/pair:predict", json={"inputs": {"IN": [[1, 2], [3, 4]], "IN2": [[5], [6]]}})
    assert answer.json() == {"outputs": {"OUT": [[1.0, 2.0], [3.0, 4.0]], "OUT2": [[5], [6]]}}
    alone = web.post("/v1/models/BYTES:predict", json={"inputs": ["a", {"b64": "/w=="}]})
    assert alone.json() == {"outputs": ["a", {"b64": "/w=="}]}


def test_models_that_take_json_predict_too(web: httpx.Client) -> None:
    answer = web.post("/v1/models/json:predict", json={"instances": [{"a": 1}, {"a": 2}]})
    assert answer.json() == {"predictions": [{"a": 1}, {"a": 2}]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"instances": []}, 400),
        ({"instances": 3}, 400),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, 400),
        ({"instances": [{"X": 1}]}, 400),
        ({"instances": [[1, "2", 3]]}, 400),
        ({"instances": [[1, 2]]}, 400),
        ({"instances": [0] * 5000}, 400),
    ],
)
def test_what_is_no_prediction(web: httpx.Client, body: dict[str, Any], status: int) -> None:
    answer = web.post("/v1/models/classes:predict", json=body)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_models_are_named_as_kserve_reads_it(web: httpx.Client) -> None:
    card = web.get("/v1/models/pair").json()
    assert (card["name"], card["ready"], card["id"]) == ("pair", True, "pair")
    assert web.post("/v1/models/nope:predict", json={}).status_code == 404
