"""Models of scikit-learn, against scikit-learn called by itself."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load, runtime_of
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import check_damaged, execute, needs, refusal
from tests.hosting.runtimes.pickles import Sabotage

sklearn = needs("sklearn")
joblib = needs("joblib")
skops_io = needs("skops.io")

from sklearn.compose import make_column_transformer  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.multioutput import MultiOutputClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler  # noqa: E402

X = np.random.default_rng(0).normal(size=(200, 4))
BINARY = (X[:, 0] > 0).astype(int)
NAMES = np.array(["no", "yes"])[BINARY]
TRUSTED = RuntimeOptions(trust_pickle=True)


def saved(model: Any, folder: Path, suffix: str) -> Path:
    path = folder / f"model{suffix}"
    if suffix == ".skops":
        skops_io.dump(model, path)
    elif suffix == ".joblib":
        joblib.dump(model, path)
    else:
        path.write_bytes(pickle.dumps(model))
    return path


def loaded(model: Any, folder: Path) -> Runtime:
    return load("sklearn", saved(model, folder, ".skops"), RuntimeOptions(threads=1))


@pytest.mark.parametrize("suffix", [".skops", ".joblib", ".pkl"])
def test_a_classifier(tmp_path: Path, suffix: str) -> None:
    oracle = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, BINARY)
    path = saved(oracle, tmp_path, suffix)
    assert runtime_of(path) == "sklearn"
    runtime = load("sklearn", path, RuntimeOptions() if suffix == ".skops" else TRUSTED)
    assert (runtime.batches, runtime.concurrent) == (True, False)
    assert runtime.inputs == (TensorSpec(name="input-0", datatype=None, dims=(4,)),)
    assert runtime.outputs == (
        TensorSpec(name="predict", datatype=Datatype.INT64, dims=()),
        TensorSpec(name="predict_proba", datatype=Datatype.FP64, dims=(2,), optional=True),
    )
    for rows in (X, X.astype(np.float32)):
        given = execute(runtime, {"input-0": rows}, "predict_proba", "predict")
        np.testing.assert_array_equal(given["predict"], oracle.predict(rows))
        np.testing.assert_allclose(given["predict_proba"], oracle.predict_proba(rows), rtol=1e-6)


def test_names_of_classes(tmp_path: Path) -> None:
    oracle = LogisticRegression().fit(X, NAMES)
    runtime = loaded(oracle, tmp_path)
    assert runtime.outputs[0].datatype is Datatype.BYTES
    given = execute(runtime, {"input-0": X}, "predict")["predict"]
    assert [each.decode() for each in given] == oracle.predict(X).tolist()


@pytest.mark.parametrize("targets", [1, 3])
def test_a_regressor(tmp_path: Path, targets: int) -> None:
    oracle = LinearRegression().fit(X, X[:, :targets] if targets > 1 else X[:, 0])
    runtime = loaded(oracle, tmp_path)
    assert runtime.outputs == (
        TensorSpec(name="predict", datatype=Datatype.FP64, dims=(targets,) if targets > 1 else ()),
    )
    np.testing.assert_allclose(execute(runtime, {"input-0": X}, "predict")["predict"], oracle.predict(X))
    narrow = X.astype(np.float32)
    np.testing.assert_allclose(execute(runtime, {"input-0": narrow}, "predict")["predict"], oracle.predict(narrow))


def test_probabilities_of_several_outputs_are_left_out(tmp_path: Path) -> None:
    oracle = MultiOutputClassifier(LogisticRegression()).fit(X, np.stack([BINARY, 1 - BINARY], axis=1))
    runtime = loaded(oracle, tmp_path)
    assert [(spec.name, spec.dims) for spec in runtime.outputs] == [("predict", (2,))]
    np.testing.assert_array_equal(execute(runtime, {"input-0": X}, "predict")["predict"], oracle.predict(X))


def test_columns_of_several_kinds(tmp_path: Path) -> None:
    pandas = needs("pandas")
    table = pandas.DataFrame({"age": X[:, 0], "city": np.where(BINARY, "Bonn", "Köln")})
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["city"]))
    oracle = make_pipeline(columns, LogisticRegression()).fit(table, BINARY)
    runtime = loaded(oracle, tmp_path)
    assert runtime.inputs == (
        TensorSpec(name="age", datatype=None, dims=(1,)),
        TensorSpec(name="city", datatype=None, dims=(1,)),
    )
    cities = np.array([[each.encode()] for each in table["city"]], object)
    given = execute(runtime, {"age": X[:, :1], "city": cities}, "predict", "predict_proba")
    np.testing.assert_array_equal(given["predict"], oracle.predict(table))
    np.testing.assert_allclose(given["predict_proba"], oracle.predict_proba(table))
    with pytest.raises(InferenceError, match="unknown categor"):
        execute(runtime, {"age": X[:1, :1], "city": np.array([[b"Ulm"]], object)}, "predict")


def test_inputs_that_are_to_blame(tmp_path: Path) -> None:
    runtime = loaded(LogisticRegression().fit(X, BINARY), tmp_path)
    for rows in (X[:, :3], np.full((1, 4), np.nan), np.full((1, 4), b"a", object), np.full((1, 4), b"\xff", object)):
        with pytest.raises(InferenceError) as caught:
            execute(runtime, {"input-0": rows}, "predict")
        assert caught.value.code is Code.INVALID_ARGUMENT


def double(rows: Any) -> Any:
    return rows * 2


def test_pickles_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for suffix in (".joblib", ".pkl"):
        message = refusal("sklearn", saved(Sabotage(mark), tmp_path, suffix))
        assert "is a pickle: loading it runs whatever code its author put there" in message
        assert "--trust-pickle; else save it with skops.io.dump" in message
    assert not mark.exists()
    path = saved(make_pipeline(FunctionTransformer(double), LinearRegression()).fit(X, BINARY), tmp_path, ".skops")
    assert "has objects of tests.hosting.runtimes.test_sklearn.double" in refusal("sklearn", path)
    load("sklearn", path, TRUSTED)


def test_what_is_no_model(tmp_path: Path) -> None:
    assert "has a dict in it, which has no predict" in refusal("sklearn", saved({}, tmp_path, ".joblib"), TRUSTED)
    message = refusal("sklearn", saved(LogisticRegression(), tmp_path, ".joblib"), TRUSTED)
    assert "has a LogisticRegression in it that has not been fitted" in message


@pytest.mark.parametrize("suffix", [".skops", ".joblib"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    good = saved(LogisticRegression().fit(X, BINARY), tmp_path, suffix)
    check_damaged("sklearn", good, tmp_path / "bad", TRUSTED, most=2)
