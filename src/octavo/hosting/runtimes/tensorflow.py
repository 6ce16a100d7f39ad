"""SavedModels, computed by TensorFlow."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.datatypes import BY_NAME, Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes import SAVED_MODEL
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import library, line, unreadable
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

SIGNATURE = "serving_default"

_DATATYPES = {**BY_NAME, "string": Datatype.BYTES}
_PLACE = re.compile(r"\{\{function_node .*?\}\} | \[Op:.*?\]")
_NOISE = ("Graph execution error", "Detected at node", "<stack traces", "[[", "node ")


class TensorflowRuntime:
    """A signature of a SavedModel: "serving_default", or the only one; see `Runtime`."""

    platform = "tensorflow_savedmodel"
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        folder = path.parent if path.name in SAVED_MODEL else path
        if not any((folder / name).is_file() for name in SAVED_MODEL):
            raise ConfigError(f"{folder} is no SavedModel: there is no saved_model.pb in it")
        device = Device.of(options.device)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors are raised
        self._tensorflow = library("tensorflow", path, "tensorflow")
        self._prepare(path, device, options)
        try:
            self._model = self._tensorflow.saved_model.load(str(folder))  # functions do not keep its variables
        except Exception as error:  # whatever it finds
            raise unreadable(path, "TensorFlow", _plain(error)) from error
        signatures = dict(self._model.signatures)
        if SIGNATURE not in signatures and len(signatures) != 1:
            there = f"but {', '.join(signatures)}" if signatures else "and no other"
            raise ConfigError(f"{path} has no signature '{SIGNATURE}', {there}")
        self._function = signatures.get(SIGNATURE) or next(iter(signatures.values()))
        inputs = [_spec(path, name, each) for name, each in self._function.structured_input_signature[1].items()]
        outputs = [_spec(path, name, each) for name, each in self._function.structured_outputs.items()]
        self.batches = first_dims_are_free([*inputs, *outputs])
        self.inputs = without_batch(inputs) if self.batches else tuple(inputs)
        self.outputs = without_batch(outputs) if self.batches else tuple(outputs)
        self._types = {spec.name: spec.datatype for spec in (*self.inputs, *self.outputs)}

    def _prepare(self, path: Path, device: Device, options: RuntimeOptions) -> None:
        """What TensorFlow takes only before it computes anything."""
        config = self._tensorflow.config
        gpus = config.list_physical_devices("GPU")
        if device.kind == "cuda" and device.number >= len(gpus):
            raise ConfigError(f"device is '{options.device}', and TensorFlow finds {len(gpus) or 'no'} GPUs", "device")
        if gpus and device.kind != "auto":
            config.set_visible_devices([gpus[device.number]] if device.kind == "cuda" else [], "GPU")
        threading = config.threading
        if options.threads is not None and threading.get_intra_op_parallelism_threads() != options.threads:
            threading.set_intra_op_parallelism_threads(options.threads)

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        errors = self._tensorflow.errors
        try:
            given = self._function(**{name: self._tensor(name, array) for name, array in inputs.items()})
        except (errors.InvalidArgumentError, errors.OutOfRangeError) as error:
            raise InferenceError(_plain(error)) from error
        return {name: self._array(name, given[name]) for name in outputs}

    def _tensor(self, name: str, array: NDArray[Any]) -> Any:
        if self._types[name] is Datatype.BF16:
            array = array.view(self._tensorflow.bfloat16.as_numpy_dtype)
        kind = self._tensorflow.string if self._types[name] is Datatype.BYTES else None
        return self._tensorflow.constant(array, dtype=kind)

    def _array(self, name: str, tensor: Any) -> NDArray[Any]:
        array = tensor.numpy()
        if self._types[name] is Datatype.BYTES:
            return np.asarray(array, object)
        return array.view(np.uint16) if self._types[name] is Datatype.BF16 else np.asarray(array)


def _spec(path: Path, name: str, tensor: Any) -> TensorSpec:
    kind = getattr(getattr(tensor, "dtype", None), "name", "")
    if kind not in _DATATYPES or type(tensor).__name__ != "TensorSpec":
        raise ConfigError(f"{path}: '{name}' is a {tensor}, which no request and no response can have")
    if tensor.shape.rank is None:
        return TensorSpec(name=name, datatype=_DATATYPES[kind], dims=None)
    dims = tuple(ANY if size is None else int(size) for size in tensor.shape)
    return TensorSpec(name=name, datatype=_DATATYPES[kind], dims=dims)


def _plain(error: Exception) -> str:
    """What TensorFlow says, without where in the graph."""
    lines = [each.strip() for each in str(error).splitlines()]
    kept = [_PLACE.sub("", each) for each in lines if each and not each.startswith(_NOISE)]
    return line(" ".join(kept) or error)
