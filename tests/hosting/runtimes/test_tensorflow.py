"""SavedModels and TFLite models, against TensorFlow called by itself."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load, runtime_of
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import check_damaged, damaged, everything_is_installed, needs, refusal, run

if not everything_is_installed():  # it takes long to import
    pytest.skip("make runtimes", allow_module_level=True)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = needs("tensorflow")

WEIGHTS = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def saved(function: Any, specs: list[Any], folder: Path, **variables: Any) -> Path:
    """A SavedModel of a function."""
    path = folder / "model"
    shutil.rmtree(path, ignore_errors=True)
    module = tf.Module()
    for name, each in variables.items():
        setattr(module, name, each)
    tf.saved_model.save(module, str(path), signatures=tf.function(function, input_signature=specs))
    return path


def linear(folder: Path, first: int | None = None) -> Path:
    weights = tf.Variable(WEIGHTS)

    def linear(x: Any) -> dict[str, Any]:
        return {"y": x @ weights, "total": tf.reduce_sum(x, -1)}

    return saved(linear, [tf.TensorSpec([first, 3], tf.float32, name="x")], folder, weights=weights)


def loaded(path: Path) -> Runtime:
    return load("tensorflow", path, RuntimeOptions())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear(tmp_path_factory.mktemp("linear"))


def test_what_it_says_and_computes(model: Path) -> None:
    assert runtime_of(model) == runtime_of(model / "saved_model.pb") == "tensorflow"
    for path in (model, model / "saved_model.pb"):
        runtime = loaded(path)
        assert (runtime.platform, runtime.batches, runtime.concurrent) == ("tensorflow_savedmodel", True, True)
        assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
        assert set(runtime.outputs) == {
            TensorSpec(name="y", datatype=Datatype.FP32, dims=(2,)),
            TensorSpec(name="total", datatype=Datatype.FP32, dims=()),
        }
        given = run(runtime, "y", "total", x=X)
        np.testing.assert_array_equal(given["y"], (tf.constant(X) @ tf.constant(WEIGHTS)).numpy())
        np.testing.assert_allclose(given["total"], X.sum(-1), rtol=1e-5)


def test_dimensions(tmp_path: Path) -> None:
    runtime = loaded(linear(tmp_path, 5))
    assert (runtime.batches, runtime.inputs[0].dims) == (False, (5, 3))
    runtime = loaded(saved(lambda x: {"y": -x}, [tf.TensorSpec(None, tf.float32, name="x")], tmp_path))
    assert (runtime.batches, runtime.inputs[0].dims) == (None, None)
    np.testing.assert_array_equal(run(runtime, x=X)["y"], -X)


def test_every_datatype(tmp_path: Path) -> None:
    names = {"FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64", "BYTES": "string"}
    kinds = {each: getattr(tf, names.get(each, each.lower())) for each in Datatype}

    def same(**tensors: Any) -> dict[str, Any]:
        return {f"out_{name}": tf.identity(each) for name, each in tensors.items()}

    path = tmp_path / "model"
    specs = {each.value: tf.TensorSpec([None, 3], kind, name=each.value) for each, kind in kinds.items()}
    concrete = tf.function(same).get_concrete_function(**specs)
    tf.saved_model.save(tf.Module(), str(path), signatures=concrete)
    runtime = loaded(path)
    assert {spec.name: spec.datatype for spec in runtime.inputs} == {each.value: each for each in Datatype}
    values: dict[str, Any] = {}
    for each in Datatype:
        if each is Datatype.BYTES:
            values[each] = np.array([[b"a", b"\xff\x00", b""], [b"1", b"2", b"3"]], object)
        else:
            bits = 2 if each is Datatype.BOOL else 100
            values[each.value] = np.random.default_rng(0).integers(0, bits, (2, 3)).astype(each.dtype)
    given = run(runtime, **values)
    for each in Datatype:
        np.testing.assert_array_equal(given[f"out_{each}"], values[each])


def test_inputs_that_are_to_blame(tmp_path: Path) -> None:
    table = tf.constant(WEIGHTS)
    specs = [tf.TensorSpec([None, None], tf.float32, name="x")]
    runtime = loaded(saved(lambda x: {"y": x @ table}, specs, tmp_path))
    with pytest.raises(
        InferenceError, match=r"^Matrix size-incompatible: In\[0\]: \[5,2\], In\[1\]: \[3,2\]$"
    ) as caught:
        run(runtime, x=X[:, :2])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_signatures(tmp_path: Path) -> None:
    module, path = tf.Module(), tmp_path / "model"
    specs = [tf.TensorSpec([None], tf.float32, name="x")]
    one, two = (tf.function(each, input_signature=specs) for each in (lambda x: {"y": x}, lambda x: {"z": -x}))
    tf.saved_model.save(module, str(path), signatures={"one": one})
    assert [spec.name for spec in loaded(path).outputs] == ["y"]
    tf.saved_model.save(module, str(path), signatures={"one": one, "serving_default": two})
    assert [spec.name for spec in loaded(path).outputs] == ["z"]
    tf.saved_model.save(module, str(path), signatures={"one": one, "two": two})
    assert "has no signature 'serving_default', but one, two" in refusal("tensorflow", path)
    tf.saved_model.save(module, str(path))
    assert "has no signature 'serving_default', and no other" in refusal("tensorflow", path)


def test_bad_models(model: Path, tmp_path: Path) -> None:
    assert "is no SavedModel: there is no saved_model.pb" in refusal("tensorflow", tmp_path)
    assert "finds no GPUs" in refusal("tensorflow", model, RuntimeOptions(device="cuda"))
    for broken in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        for number, path in enumerate(damaged(model / broken, tmp_path / broken)):
            copy = tmp_path / f"{number}-{Path(broken).name}"
            shutil.copytree(model, copy)
            shutil.copy(path, copy / broken)
            if number % 5 == 1:
                refusal("tensorflow", copy)


@pytest.fixture(scope="module")
def tflite(model: Path) -> Path:
    path = model.parent / "model.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(model)).convert())
    return path


def test_tflite(tflite: Path) -> None:
    assert runtime_of(tflite) == "tflite"
    runtime = load("tflite", tflite, RuntimeOptions(threads=1))
    assert (runtime.platform, runtime.batches, runtime.concurrent) == ("tflite", True, False)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
    assert {spec.name: spec.dims for spec in runtime.outputs} == {"y": (2,), "total": ()}
    for rows in (1, 5, 2):
        given = run(runtime, x=X[:rows])
        np.testing.assert_allclose(given["y"], X[:rows] @ WEIGHTS, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(given["total"], X[:rows].sum(-1), rtol=1e-5, atol=1e-6)
    for wrong in (X[:, :2], X.astype(np.float64)):
        with pytest.raises(InferenceError):
            run(runtime, x=wrong)


def test_tflite_without_a_signature(tmp_path: Path) -> None:
    concrete = tf.function(lambda x: -x).get_concrete_function(tf.TensorSpec([1, 3], tf.float32, name="x"))
    path = tmp_path / "model.tflite"
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], None)
    path.write_bytes(converter.convert())
    runtime = load("tflite", path, RuntimeOptions())
    assert (runtime.batches, runtime.inputs[0].dims) == (False, (1, 3))
    [output] = runtime.outputs
    np.testing.assert_array_equal(run(runtime, **{runtime.inputs[0].name: X[:1]})[output.name], -X[:1])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "float16", "bool", "string"])
def test_datatypes_of_tflite(tmp_path: Path, kind: str) -> None:
    specs = [tf.TensorSpec([None, 3], getattr(tf, kind), name="x")]
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved(lambda x: {"y": tf.expand_dims(x, 1)}, specs, tmp_path))
    )
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    runtime = load("tflite", path, RuntimeOptions())
    [spec] = runtime.inputs
    assert spec.datatype is not None
    assert spec.dims == (3,)
    x = np.array([[b"a", b"\xff", b""]], object) if kind == "string" else np.array([[0, 1, 1]], spec.datatype.dtype)
    np.testing.assert_array_equal(run(runtime, x=x)["y"], x[:, None])


def test_damaged_tflite_files(tflite: Path, tmp_path: Path) -> None:
    check_damaged("tflite", tflite, tmp_path / "bad", most=3)
    assert "computes on CPUs alone" in refusal("tflite", tflite, RuntimeOptions(device="cuda"))
