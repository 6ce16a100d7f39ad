"""Models of LightGBM in its text format."""

import logging
import re
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
from octavo.hosting.runtimes.files import existing, library, unreadable
from octavo.hosting.runtimes.tabular import INPUT, PREDICT, features, numbers
from octavo.hosting.signature import TensorSpec


class LightgbmRuntime:
    """A booster; see `Runtime`. It gives what `Booster.predict` does: of a classifier, probabilities."""

    platform = "lightgbm"
    batches = True
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        existing(path)
        Device.cpu_only(options.device, "lightgbm")
        _check_whole(path)
        lightgbm = library("lightgbm", path, "lightgbm")
        silent = logging.getLogger(f"{__name__}.silent")
        silent.disabled = True  # it prints what its exceptions say
        lightgbm.register_logger(silent)
        self._error: type[Exception] = lightgbm.basic.LightGBMError
        self._threads = {} if options.threads is None else {"num_threads": options.threads}
        try:
            self._booster = lightgbm.Booster(model_file=str(path))
            self.inputs = features(self._booster.num_feature())
            row = self._predict(np.zeros((1, self._booster.num_feature())))
        except (self._error, ValueError, UnicodeDecodeError) as error:
            raise unreadable(path, "LightGBM", error) from error
        self.outputs = (TensorSpec(name=PREDICT, datatype=Datatype.FP64, dims=row.shape[1:]),)

    def _predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._booster.predict(rows, **self._threads), np.float64)

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            return {PREDICT: self._predict(numbers(inputs[INPUT]))}
        except (self._error, ValueError) as error:
            raise InferenceError(str(error)) from error


def _check_whole(path: Path) -> None:
    """LightGBM ends the process if a file ends before its trees do.

    Raises:
        ConfigError: this one does, or is something else.
    """
    data = path.read_bytes()
    if not data.startswith(b"tree\n"):
        raise ConfigError(f"{path} is no text file of LightGBM, which begins with 'tree'")
    header, _, _ = data.partition(b"\n\n")
    sizes = re.search(rb"^tree_sizes=([\d ]*)$", header, re.MULTILINE)
    at = len(header)
    for number, size in enumerate(map(int, sizes[1].split()) if sizes else ()):
        at = data.find(b"Tree=", at)
        if not data.startswith(b"Tree=%d\n" % number, at):
            raise ConfigError(f"{path} is damaged: it lacks tree {number}")
        at += size
    if b"end of trees" not in data[at:] or b"end of parameters" not in data[at:]:
        raise ConfigError(f"{path} is damaged: it ends before its trees and parameters do")
