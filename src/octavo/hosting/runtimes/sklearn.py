"""Models of scikit-learn: skops files, and pickles (also joblib's) of those who are trusted."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import existing, library, line, unreadable, untrusted
from octavo.hosting.runtimes.strings import decoded, encoded
from octavo.hosting.runtimes.tabular import INPUT, PREDICT, PREDICT_PROBA, features
from octavo.hosting.signature import TensorSpec

log = logging.getLogger(__name__)

EXTRA = "sklearn"


class SklearnRuntime:
    """An estimator or a pipeline; see `Runtime`. Most of its work holds the GIL.

    It takes rows of features as one tensor. One that was fitted to a table whose columns are of several kinds takes
    each column by its name.
    """

    platform = "sklearn"
    batches = True
    concurrent = False

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        existing(path)
        Device.cpu_only(options.device, "sklearn")
        library("sklearn", path, EXTRA)
        self._estimator = _loaded(path, options)
        if not hasattr(self._estimator, PREDICT):
            raise ConfigError(f"{path} has a {type(self._estimator).__name__} in it, which has no predict")
        if options.threads is not None:
            library("threadpoolctl", path, EXTRA).threadpool_limits(options.threads)
        # Arrays have none, and nobody mixed them up.
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        self._columns: list[str] = []
        self._frame: Any = None
        self.inputs: tuple[TensorSpec, ...] = features(getattr(self._estimator, "n_features_in_", None))
        self.outputs = self._outputs(path)

    def _outputs(self, path: Path) -> tuple[TensorSpec, ...]:
        """What it gives for a row of zeros. Raises ConfigError: it has not been fitted."""
        count = getattr(self._estimator, "n_features_in_", None)
        names = [PREDICT, *([PREDICT_PROBA] if hasattr(self._estimator, PREDICT_PROBA) else [])]
        if count is None:
            self._check_fitted(path)
            return tuple(TensorSpec(name=each, datatype=None, dims=None, optional=each != PREDICT) for each in names)
        try:
            found = self._computed(np.zeros((1, count)), names)
        except Exception as error:  # whatever an estimator raises that was fitted to something else than numbers
            columns = getattr(self._estimator, "feature_names_in_", None)
            if columns is None:
                raise ConfigError(f"{path} does not compute a row of {count} numbers: {line(error)}") from error
            self._frame = library("pandas", path, EXTRA).DataFrame
            self._columns = [str(each) for each in columns]
            self.inputs = tuple(TensorSpec(name=each, datatype=None, dims=(1,)) for each in self._columns)
            return tuple(TensorSpec(name=each, datatype=None, dims=None, optional=each != PREDICT) for each in names)
        return tuple(
            TensorSpec(
                name=name, datatype=Datatype.of(array.dtype), dims=array.shape[1:], optional=name == PREDICT_PROBA
            )
            for name, array in found.items()
        )

    def _check_fitted(self, path: Path) -> None:
        not_fitted = library("sklearn.exceptions", path, EXTRA).NotFittedError
        try:
            library("sklearn.utils.validation", path, EXTRA).check_is_fitted(self._estimator)
        except not_fitted as error:
            raise ConfigError(
                f"{path} has a {type(self._estimator).__name__} in it that has not been fitted"
            ) from error

    def _computed(self, rows: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """By the names of the methods that compute them; those of several outputs are no tensors, and left out."""
        found = {name: getattr(self._estimator, name)(rows) for name in names}
        arrays = {name: np.asarray(each) for name, each in found.items() if not isinstance(each, list)}
        return {name: encoded(each) if each.dtype.kind in "OU" else each for name, each in arrays.items()}

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        given = {name: decoded(name, each) if each.dtype == object else each for name, each in inputs.items()}
        try:
            found = self._computed(self._table(given) if self._columns else given[INPUT], outputs)
        except ValueError as error:  # what it raises for NaN, text for numbers, and the like
            raise InferenceError(line(error)) from error
        # What a row of zeros gave may have been wider than what narrower numbers give.
        types = {spec.name: spec.datatype for spec in self.outputs}
        return {name: _widened(array, types[name]) for name, array in found.items()}

    def _table(self, given: Mapping[str, NDArray[Any]]) -> Any:
        return self._frame({name: given[name].ravel() for name in self._columns})


def _widened(array: NDArray[Any], datatype: Datatype | None) -> NDArray[Any]:
    return array if datatype is None else array.astype(datatype.dtype, copy=False)


def _loaded(path: Path, options: RuntimeOptions) -> Any:
    """What is in a file. Raises ConfigError."""
    skops = path.suffix.lower() == ".skops"
    if not skops and not options.trust_pickle:
        raise untrusted(path, "is a pickle", "save it with skops.io.dump, or convert it to ONNX")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            loaded = _from_skops(path, options) if skops else library("joblib", path, EXTRA).load(path)
        except ConfigError:
            raise
        except Exception as error:  # a pickle raises whatever the code in it does
            raise unreadable(path, "skops" if skops else "joblib", error) from error
    for each in {line(str(each.message)) for each in told}:
        log.warning("%s: %s", path.name, each)  # most often, that another version has written it
    return loaded


def _from_skops(path: Path, options: RuntimeOptions) -> Any:
    skops = library("skops.io", path, EXTRA)
    unknown = skops.get_untrusted_types(file=path)
    if unknown and not options.trust_pickle:
        raise untrusted(path, f"has objects of {', '.join(unknown)}", "convert it to ONNX")
    return skops.load(path, trusted=unknown)
