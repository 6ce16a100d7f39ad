"""Models of LightGBM, against LightGBM called by itself."""

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
from tests.hosting.runtimes.checks import check_damaged, execute, needs, refusal

lightgbm = needs("lightgbm")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4))


@pytest.mark.parametrize(
    ("settings", "target", "dims"),
    [
        ({"objective": "regression"}, X[:, 0], ()),
        ({"objective": "binary"}, X[:, 0] > 0, ()),
        ({"objective": "multiclass", "num_class": 3}, RNG.integers(0, 3, 200), (3,)),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".bst", ".lgb"])
def test_boosters(
    tmp_path: Path, settings: dict[str, Any], target: NDArray[Any], dims: tuple[int, ...], suffix: str
) -> None:
    oracle = lightgbm.train({**settings, "verbose": -1}, lightgbm.Dataset(X, target), num_boost_round=4)
    path = tmp_path / f"model{suffix}"
    oracle.save_model(path)
    assert runtime_of(path) == "lightgbm"
    runtime = load("lightgbm", path, RuntimeOptions(threads=1))
    assert (runtime.batches, runtime.concurrent) == (True, True)
    assert runtime.inputs == (TensorSpec(name="input-0", datatype=None, dims=(4,)),)
    assert runtime.outputs == (TensorSpec(name="predict", datatype=Datatype.FP64, dims=dims),)
    np.testing.assert_allclose(execute(runtime, {"input-0": X}, "predict")["predict"], oracle.predict(X))
    given = execute(runtime, {"input-0": X.astype(np.float32)}, "predict")["predict"]
    np.testing.assert_allclose(given, oracle.predict(X.astype(np.float32)))


def test_bad_inputs_and_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "model.txt"
    lightgbm.train({"verbose": -1}, lightgbm.Dataset(X, X[:, 0]), num_boost_round=4).save_model(good)
    capfd.readouterr()
    runtime = load("lightgbm", good, RuntimeOptions())
    for rows in (X[:, :3], np.full((1, 4), b"1", object)):
        with pytest.raises(InferenceError) as caught:
            execute(runtime, {"input-0": rows}, "predict")
        assert caught.value.code is Code.INVALID_ARGUMENT
    check_damaged("lightgbm", good, tmp_path / "bad", most=4)
    assert "computes on CPUs alone" in refusal("lightgbm", good, RuntimeOptions(device="cuda"))
    assert not capfd.readouterr().out
