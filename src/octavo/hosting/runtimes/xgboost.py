"""Models of XGBoost in its own formats: JSON and UBJSON."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import existing, library, unreadable
from octavo.hosting.runtimes.tabular import INPUT, PREDICT, PREDICT_PROBA, features, numbers
from octavo.hosting.signature import TensorSpec

_NOISE = re.compile(r"^\[[\d:]+\] \S+: (Check failed: .*?: )?|\s*Stack trace:.*", re.DOTALL)


class XgboostRuntime:
    """A booster; see `Runtime`.

    One that an `XGBClassifier` saved gives classes and, to those who ask for them, probabilities. Others give what
    `Booster.predict` does.
    """

    platform = "xgboost"
    batches = True
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        existing(path)
        device = Device.of(options.device)
        xgboost = library("xgboost", path, "xgboost")
        self._xgboost = xgboost
        xgboost.set_config(verbosity=0)
        settings: dict[str, Any] = {} if options.threads is None else {"nthread": options.threads}
        if device.kind == "cuda":
            settings["device"] = f"cuda:{device.number}"
        try:
            self._booster = xgboost.Booster(settings, model_file=str(path))
            learner = json.loads(self._booster.save_config())["learner"]
            self._trees = learner["gradient_booster"]["name"] != "gblinear"
            rows = self._predict(np.zeros((1, self._booster.num_features()), np.float32))
        except (xgboost.core.XGBoostError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise unreadable(path, "XGBoost", _NOISE.sub("", str(error))) from error
        saved = json.loads(self._booster.attr("scikit_learn") or "{}")
        self._classifies = saved.get("_estimator_type") == "classifier"
        self._binary = learner["objective"]["name"].startswith("binary:")
        self.inputs = features(self._booster.num_features())
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(name=PREDICT, datatype=Datatype.FP32, dims=rows.shape[1:]),)
        if self._classifies:
            classes = 2 if rows.ndim == 1 else rows.shape[1]
            self.outputs = (
                TensorSpec(name=PREDICT, datatype=Datatype.INT64, dims=()),
                TensorSpec(name=PREDICT_PROBA, datatype=Datatype.FP32, dims=(classes,), optional=True),
            )

    def _predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        """With the trees up to the best one, if training stopped early."""
        best = self._booster.attr("best_iteration")
        until = (0, int(best) + 1) if best else (0, 0)
        if self._trees:
            result = self._booster.inplace_predict(rows, iteration_range=until)
        else:
            result = self._booster.predict(self._xgboost.DMatrix(rows))
        return np.asarray(result, np.float32)

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            rows = self._predict(numbers(inputs[INPUT]))
        except ValueError as error:
            raise InferenceError(str(error)) from error
        if not self._classifies:
            return {PREDICT: rows}
        found = {}
        if PREDICT in outputs:
            found[PREDICT] = ((rows > 0.5) if rows.ndim == 1 else rows.argmax(1)).astype(np.int64)
        if PREDICT_PROBA in outputs:
            found[PREDICT_PROBA] = np.stack([1 - rows, rows], axis=1) if rows.ndim == 1 else rows
        return {name: found[name] for name in outputs}
