"""ONNX models, made here by `onnx`, against ONNX Runtime called by itself, and numpy."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, external_data_helper, helper, save

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes import load
from octavo.hosting.runtimes.onnx import OnnxRuntime
from octavo.hosting.signature import ANY, TensorSpec
from tests.hosting.runtimes.checks import check_damaged, execute, refusal, run

Shape = Sequence[int | str] | None


def value(name: str, shape: Shape, element: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model(
    nodes: list[Any],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    opset: int = 21,
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def weight(name: str, array: NDArray[Any]) -> TensorProto:
    return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel())


def identity(shape: Shape, element: int = TensorProto.FLOAT) -> ModelProto:
    return model([node("Identity", "x", "y")], [value("x", shape, element)], [value("y", shape, element)])


WEIGHTS = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)


def linear(first: str | int = "batch") -> ModelProto:
    return model(
        [node("MatMul", "x w", "y")], [value("x", [first, 3])], [value("y", [first, 2])], [weight("w", WEIGHTS)]
    )


def loaded(made: ModelProto, folder: Path, **options: Any) -> OnnxRuntime:
    path = folder / "model.onnx"
    save(made, path)
    runtime = load("onnx", path, RuntimeOptions(**options))
    assert isinstance(runtime, OnnxRuntime)
    return runtime


def test_what_it_says_and_computes(tmp_path: Path) -> None:
    runtime = loaded(linear(), tmp_path, threads=1)
    assert (runtime.platform, runtime.batches, runtime.concurrent) == ("onnxruntime_onnx", True, True)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
    assert runtime.outputs == (TensorSpec(name="y", datatype=Datatype.FP32, dims=(2,)),)
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    oracle = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(run(runtime, x=x)["y"], oracle.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("shape", "batches", "dims"),
    [
        (["n", 3], True, (3,)),
        (["n", "length", 4], True, (ANY, 4)),
        ([2, 3], False, (2, 3)),
        ([1, "length"], False, (1, ANY)),
        (None, None, None),
    ],
)
def test_dimensions(tmp_path: Path, shape: Shape, batches: bool | None, dims: tuple[int, ...] | None) -> None:
    runtime = loaded(identity(shape), tmp_path)
    assert runtime.batches is batches
    assert [spec.dims for spec in (*runtime.inputs, *runtime.outputs)] == [dims, dims]


def test_one_tensor_without_a_batch_dimension_and_there_is_none(tmp_path: Path) -> None:
    made = model([node("Add", "x bias", "y")], [value("x", ["n", 3]), value("bias", [3])], [value("y", ["n", 3])])
    runtime = loaded(made, tmp_path)
    assert runtime.batches is False
    assert [spec.dims for spec in (*runtime.inputs, *runtime.outputs)] == [(ANY, 3), (3,), (ANY, 3)]


def test_first_dimensions_of_other_names(tmp_path: Path) -> None:
    """What an object detector finds is no batch; names that exporters make up may be one."""
    x = value("x", ["batch", 3])
    found = model([node("NonZero", "x", "at"), node("Transpose", "at", "y")], [x], [value("y", ["found", 2], 7)])
    assert loaded(found, tmp_path).batches is False
    doubled = model([node("Add", "x x", "y")], [x], [value("y", ["unk__1", 3])])
    assert loaded(doubled, tmp_path).batches is True
    length = [value("x", ["batch", "length"]), value("y", ["unk__1", 2])]
    picky = model([node("MatMul", "x w", "y")], length[:1], length[1:], [weight("w", WEIGHTS)])
    assert loaded(picky, tmp_path).batches is True


@pytest.mark.parametrize("datatype", Datatype)
def test_every_datatype(tmp_path: Path, datatype: Datatype) -> None:
    names = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    element = getattr(TensorProto, names.get(datatype, datatype.value))
    runtime = loaded(identity(["n", 3], element), tmp_path)
    assert runtime.inputs[0].datatype is datatype
    if datatype is Datatype.BYTES:
        x = np.array([[b"a", "ü€😀".encode(), b""]], object)
    else:
        x = np.random.default_rng(0).integers(0, 2 if datatype is Datatype.BOOL else 100, (2, 3)).astype(datatype.dtype)
    np.testing.assert_array_equal(run(runtime, x=x)["y"], x)
    none = x[:0]
    np.testing.assert_array_equal(run(runtime, x=none)["y"], none)


def test_bfloat16_is_computed(tmp_path: Path) -> None:
    made = model(
        [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Add", "f f", "g"), node("Cast", "g", "y", to=16)],
        [value("x", ["n"], TensorProto.BFLOAT16), value("z", ["n"])],
        [value("y", ["n"], TensorProto.BFLOAT16), value("g", ["n"])],
    )
    runtime = loaded(made, tmp_path)
    x = np.array([1.5, -3.0], np.float32)
    given = run(runtime, x=(x.view(np.uint32) >> 16).astype(np.uint16), z=x)
    np.testing.assert_array_equal((given["y"].astype(np.uint32) << 16).view(np.float32), 2 * x)
    np.testing.assert_array_equal(given["g"], 2 * x)


def test_optional_inputs(tmp_path: Path) -> None:
    of_type = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
    made = model(
        [node("OptionalHasElement", "x", "y")],
        [helper.make_value_info("x", of_type)],
        [value("y", [], TensorProto.BOOL)],
    )
    runtime = loaded(made, tmp_path)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(ANY,), optional=True),)
    assert not run(runtime)["y"]
    assert run(runtime, x=np.ones(1, np.float32))["y"]


def test_weights_that_are_inputs_too(tmp_path: Path) -> None:
    """Old models have all of theirs there."""
    x, w = value("x", ["n", 3]), value("w", [3, 2])
    made = model([node("MatMul", "x w", "y")], [x, w], [value("y", ["n", 2])], [weight("w", WEIGHTS)], opset=7)
    made.ir_version = 3
    runtime = loaded(made, tmp_path)
    assert (runtime.batches, [spec.name for spec in runtime.inputs]) == (True, ["x"])
    np.testing.assert_allclose(run(runtime, x=np.eye(3, dtype=np.float32))["y"], WEIGHTS, rtol=1e-6)


def test_only_the_outputs_that_are_wanted(tmp_path: Path) -> None:
    made = model(
        [node("Neg", "x", "minus"), node("Identity", "x", "plus")],
        [value("x", ["n"])],
        [value("minus", ["n"]), value("plus", ["n"])],
    )
    runtime = loaded(made, tmp_path)
    assert list(run(runtime, "plus", x=np.ones(2, np.float32))) == ["plus"]


def test_outputs_that_are_no_tensors_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the exporters of scikit-learn give probabilities, for instance."""
    sequence = helper.make_value_info(
        "list", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
    )
    construct = node("SequenceConstruct", "x x", "list")
    made = model([construct, node("Neg", "x", "y")], [value("x", ["n"])], [sequence, value("y", ["n"])])
    assert [spec.name for spec in loaded(made, tmp_path).outputs] == ["y"]
    assert "output 'list' is left out: it is no tensor but a seq(tensor(float))" in caplog.text
    save(model([construct], [value("x", ["n"])], [sequence]), tmp_path / "model.onnx")
    assert "no output that is a tensor" in refusal("onnx", tmp_path / "model.onnx")


def test_threads_share_a_session(tmp_path: Path) -> None:
    runtime = loaded(linear(), tmp_path, threads=2)
    x = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    right = run(runtime, x=x)["y"]
    wrong: list[int] = []

    def calls(rows: int) -> None:
        for _ in range(50):
            computed = runtime.execute({"x": x[:rows]}, ["y"])["y"]
            wrong.extend([] if np.array_equal(computed, right[:rows]) else [rows])

    threads = [threading.Thread(target=calls, args=(rows,)) for rows in (1, 7, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_beside_the_file(tmp_path: Path) -> None:
    made = linear()
    external_data_helper.convert_model_to_external_data(made, location="weights.bin", size_threshold=0)
    for tensor in made.graph.initializer:
        tensor.raw_data = WEIGHTS.tobytes()
        tensor.ClearField("float_data")
        external_data_helper.set_external_data(tensor, "weights.bin")
    runtime = loaded(made, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == WEIGHTS.nbytes
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(run(runtime, x=x)["y"], WEIGHTS, rtol=1e-6)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refusal("onnx", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("made", "inputs", "message"),
    [
        (linear("n"), {"x": np.zeros((2, 4), np.float32)}, "Got invalid dimensions for input: x"),
        (identity(None, TensorProto.STRING), {"x": np.array([b"\xff"], object)}, "input 'x' has an element that is no"),
        (
            model(
                [node("Gather", "w x", "y")],
                [value("x", ["n"], TensorProto.INT64)],
                [value("y", ["n", 2])],
                [weight("w", WEIGHTS)],
            ),
            {"x": np.array([7])},
            "indices element out of data bounds, idx=7",
        ),
        (
            model([node("Add", "x z", "y")], [value("x", ["n"]), value("z", ["m"])], [value("y", ["k"])]),
            {"x": np.zeros(3, np.float32), "z": np.zeros(2, np.float32)},
            "broadcast an axis by a dimension other than 1. 2 by 3",
        ),
        (
            model([node("MatMul", "x x", "y")], [value("x", ["n", "k"])], [value("y", ["n", "k"])]),
            {"x": np.zeros((2, 3), np.float32)},
            "MatMul dimension mismatch",
        ),
    ],
)
def test_inputs_that_are_to_blame(
    tmp_path: Path, made: ModelProto, inputs: dict[str, NDArray[Any]], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = loaded(made, tmp_path)
    with pytest.raises(InferenceError) as caught:
        execute(runtime, inputs, "y")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "_src" not in str(caught.value), "it says where in its sources"
    assert not capfd.readouterr().err


def test_operators_and_versions_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    made = model([node("Foo", "x", "y", domain="com.example")], [value("x", ["n"])], [value("y", ["n"])])
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    save(made, path)
    assert "com.example:Foo" in refusal("onnx", path)
    save(model([node("Identity", "x", "y")], [value("x", ["n"])], [value("y", ["n"])], opset=99), path)
    assert "Opset 99" in refusal("onnx", path)
    made = linear()
    made.ir_version = 99
    save(made, path)
    assert "Unsupported model IR version: 99" in refusal("onnx", path)
    save(identity(["n"], TensorProto.FLOAT8E4M3FN), path)
    assert "'x' is a tensor(float8e4m3fn), which no request" in refusal("onnx", path)


def test_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.onnx"
    save(linear(), good)
    check_damaged("onnx", good, tmp_path / "bad", most=2)
    assert not capfd.readouterr().err


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.onnx"
    save(linear(), path)
    for device in ("gpu", "cpu:1", "", "cuda:x"):
        assert f"device is '{device}'; give auto, cpu, cuda or cuda:N" in refusal(
            "onnx", path, RuntimeOptions(device=device)
        )
    session, asked = onnxruntime.InferenceSession, []

    def on_cpu(path: Path, settings: Any, providers: list[Any]) -> Any:
        asked.append([*providers])
        return session(path, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "tensorrt:1"):
        assert "pip install onnxruntime-gpu" in refusal("onnx", path, RuntimeOptions(device=device))
    load("onnx", path, RuntimeOptions())
    # What is installed could use a GPU, and there is none.
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    gpu = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*gpu, "CPUExecutionProvider"])
    load("onnx", path, RuntimeOptions())
    assert "model.onnx is computed on the CPU" in caplog.text
    for device in ("cuda:1", "tensorrt:1"):
        with pytest.raises(ConfigError, match="cannot use it: are the GPU's driver, CUDA and cuDNN there"):
            load("onnx", path, RuntimeOptions(device=device))
    load("onnx", path, RuntimeOptions(device="cpu"))
    first = [("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"]
    one = {"device_id": "1"}
    assert asked == [
        first,
        [("CUDAExecutionProvider", one), "CPUExecutionProvider"],
        [("TensorrtExecutionProvider", one), ("CUDAExecutionProvider", one), "CPUExecutionProvider"],
        ["CPUExecutionProvider"],
    ]
