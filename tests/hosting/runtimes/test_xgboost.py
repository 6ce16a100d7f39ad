"""Models of XGBoost, against its own interface for scikit-learn and its boosters."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes import load, runtime_of
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import check_damaged, execute, needs

xgboost = needs("xgboost")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)).astype(np.float32)
BINARY = (X[:, 0] > 0).astype(int)
THREE = RNG.integers(0, 3, 200)


def saved(model: Any, folder: Path, suffix: str = ".json") -> Path:
    path = folder / f"model{suffix}"
    model.save_model(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
@pytest.mark.parametrize(("labels", "classes"), [(BINARY, 2), (THREE, 3)])
def test_classifiers(tmp_path: Path, labels: NDArray[Any], classes: int, suffix: str) -> None:
    oracle = xgboost.XGBClassifier(n_estimators=5).fit(X, labels)
    path = saved(oracle, tmp_path, suffix)
    assert runtime_of(path) == "xgboost"
    runtime = load("xgboost", path, RuntimeOptions(threads=1))
    assert (runtime.batches, runtime.concurrent) == (True, True)
    assert runtime.inputs == (TensorSpec(name="input-0", datatype=None, dims=(4,)),)
    assert runtime.outputs == (
        TensorSpec(name="predict", datatype=Datatype.INT64, dims=()),
        TensorSpec(name="predict_proba", datatype=Datatype.FP32, dims=(classes,), optional=True),
    )
    for rows in (X, X.astype(np.float64)):
        given = execute(runtime, {"input-0": rows}, "predict_proba", "predict")
        np.testing.assert_array_equal(given["predict"], oracle.predict(X))
        np.testing.assert_allclose(given["predict_proba"], oracle.predict_proba(X), rtol=1e-6)
    assert list(execute(runtime, {"input-0": X}, "predict")) == ["predict"]


def test_one_that_stopped_early(tmp_path: Path) -> None:
    oracle = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=2)
    oracle.fit(X, BINARY, eval_set=[(X[:50], 1 - BINARY[:50])], verbose=0)
    runtime = load("xgboost", saved(oracle, tmp_path), RuntimeOptions())
    given = execute(runtime, {"input-0": X}, "predict_proba")["predict_proba"]
    np.testing.assert_allclose(given, oracle.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("booster", ["gbtree", "gblinear", "dart"])
@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic"])
def test_regressors_and_boosters(tmp_path: Path, booster: str, objective: str) -> None:
    settings = {"objective": objective, "booster": booster, "verbosity": 0}
    oracle = xgboost.train(settings, xgboost.DMatrix(X, BINARY), num_boost_round=4)
    runtime = load("xgboost", saved(oracle, tmp_path, ".ubj"), RuntimeOptions())
    assert runtime.outputs == (TensorSpec(name="predict", datatype=Datatype.FP32, dims=()),)
    given = execute(runtime, {"input-0": X}, "predict")["predict"]
    np.testing.assert_allclose(given, oracle.predict(xgboost.DMatrix(X)), rtol=1e-6)


def test_several_targets_and_missing_values(tmp_path: Path) -> None:
    targets = np.stack([X[:, 0], X[:, 1] * 2], axis=1)
    oracle = xgboost.XGBRegressor(n_estimators=3).fit(X, targets)
    runtime = load("xgboost", saved(oracle, tmp_path), RuntimeOptions())
    assert runtime.outputs[0].dims == (2,)
    rows = X.copy()
    rows[::2, 1] = np.nan
    np.testing.assert_allclose(execute(runtime, {"input-0": rows}, "predict")["predict"], oracle.predict(rows))


def test_threads_share_a_booster(tmp_path: Path) -> None:
    runtime = load("xgboost", saved(xgboost.XGBRegressor(n_estimators=5).fit(X, X[:, 0]), tmp_path), RuntimeOptions())
    right = execute(runtime, {"input-0": X}, "predict")["predict"]
    wrong: list[bool] = []

    def calls() -> None:
        given = (runtime.execute({"input-0": X}, ["predict"])["predict"] for _ in range(20))
        wrong.extend(not np.array_equal(each, right) for each in given)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80
    assert not any(wrong)


def test_inputs_that_are_to_blame(tmp_path: Path) -> None:
    runtime = load("xgboost", saved(xgboost.XGBRegressor(n_estimators=1).fit(X, X[:, 0]), tmp_path), RuntimeOptions())
    for rows in (X[:, :3], np.full((1, 4), b"1", object)):
        with pytest.raises(InferenceError) as caught:
            execute(runtime, {"input-0": rows}, "predict")
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
def test_damaged_files(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = saved(xgboost.XGBClassifier(n_estimators=2).fit(X, BINARY), tmp_path, suffix)
    check_damaged("xgboost", good, tmp_path / "bad", most=2)
    assert not capfd.readouterr().err
