"""Models in OpenVINO's IR, against OpenVINO called by itself, and numpy."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load, runtime_of
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import check_damaged, needs, refusal, run

openvino = needs("openvino")
ops = needs("openvino.opset13")

WEIGHTS = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def saved(node: Any, parameters: list[Any], folder: Path) -> Path:
    path = folder / "model.xml"
    node.output(0).set_names({"y"})
    openvino.save_model(openvino.Model([ops.result(node)], parameters, "m"), path, compress_to_fp16=False)
    return path


def parameter(name: str, shape: list[int], kind: str = "f32") -> Any:
    made = ops.parameter(shape, getattr(openvino.Type, kind), name=name)
    made.output(0).set_names({name})
    return made


def linear(folder: Path, first: int = -1) -> Path:
    x = parameter("x", [first, 3])
    return saved(ops.matmul(x, ops.constant(WEIGHTS), False, False), [x], folder)


def loaded(path: Path) -> Runtime:
    return load("openvino", path, RuntimeOptions(threads=1))


def test_what_it_says_and_computes(tmp_path: Path) -> None:
    path = linear(tmp_path)
    assert runtime_of(path) == "openvino"
    runtime = loaded(path)
    assert (runtime.platform, runtime.batches, runtime.concurrent) == ("openvino", True, True)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
    assert runtime.outputs == (TensorSpec(name="y", datatype=Datatype.FP32, dims=(2,)),)
    oracle = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(run(runtime, x=X)["y"], oracle(X)[0])
    np.testing.assert_allclose(run(runtime, x=X[:1])["y"], X[:1] @ WEIGHTS, rtol=1e-5)


def test_dimensions(tmp_path: Path) -> None:
    runtime = loaded(linear(tmp_path, 2))
    assert (runtime.batches, runtime.inputs[0].dims, runtime.outputs[0].dims) == (False, (2, 3), (2, 2))
    x = ops.parameter(openvino.PartialShape.dynamic(), openvino.Type.f32, name="x")
    x.output(0).set_names({"x"})
    assert "doesn't support Parameter operation with dynamic rank" in refusal(
        "openvino", saved(ops.relu(x), [x], tmp_path)
    )


@pytest.mark.parametrize("datatype", Datatype)
def test_every_datatype(tmp_path: Path, datatype: Datatype) -> None:
    kinds = {"BOOL": "boolean", "BYTES": "string", "FP16": "f16", "BF16": "bf16", "FP32": "f32", "FP64": "f64"}
    kind = kinds.get(datatype) or datatype.lower().replace("uint", "u").replace("int", "i")
    x = parameter("x", [-1, 3], kind)
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.Model([ops.result(x)], [x], "m"), path, compress_to_fp16=False)
    runtime = loaded(path)
    assert runtime.inputs == (TensorSpec(name="x", datatype=datatype, dims=(3,)),)
    if datatype is Datatype.BYTES:
        values = np.array([[b"a", "ü€😀".encode(), b""]], object)
    else:
        bits = 2 if datatype is Datatype.BOOL else 100
        values = np.random.default_rng(0).integers(0, bits, (2, 3)).astype(datatype.dtype)
    np.testing.assert_array_equal(run(runtime, x=values)[runtime.outputs[0].name], values)


def test_threads_have_requests_of_their_own(tmp_path: Path) -> None:
    runtime = loaded(linear(tmp_path))
    right = run(runtime, x=X)["y"]
    results: list[bool] = []

    def calls() -> None:
        given = (runtime.execute({"x": X}, ["y"])["y"] for _ in range(50))
        results.extend(np.array_equal(each, right) for each in given)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(results)


def test_inputs_that_are_to_blame(tmp_path: Path) -> None:
    runtime = loaded(linear(tmp_path))
    with pytest.raises(InferenceError) as caught:
        run(runtime, x=X[:, :2])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "\n" not in str(caught.value)


def test_other_formats_by_name(tmp_path: Path) -> None:
    onnx = needs("onnx")
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [tensor("x", 1, ["n", 3])], [tensor("y", 1, ["n", 3])])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    runtime = loaded(tmp_path / "m.onnx")
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
    np.testing.assert_array_equal(run(runtime, x=X)["y"], -X)


def test_bad_files(tmp_path: Path) -> None:
    good = linear(tmp_path)
    check_damaged("openvino", good, tmp_path / "bad")
    (tmp_path / "other.xml").write_bytes(good.read_bytes())
    assert f"{tmp_path / 'other.bin'} does not exist" in refusal("openvino", tmp_path / "other.xml")
    (tmp_path / "other.bin").write_bytes(b"1234")
    refusal("openvino", tmp_path / "other.xml")
    assert "computes on CPUs alone" in refusal("openvino", good, RuntimeOptions(device="cuda"))
