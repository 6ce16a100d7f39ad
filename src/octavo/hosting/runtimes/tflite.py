"""TFLite models, computed by LiteRT."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import existing, library, line, unreadable
from octavo.hosting.runtimes.strings import encoded
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

SIGNATURE = "serving_default"


class TfliteRuntime:
    """An interpreter, which computes one call at a time; see `Runtime`. Its inputs are resized for each batch."""

    platform = "tflite"
    concurrent = False

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        existing(path)
        Device.cpu_only(options.device, "tflite")
        litert = library("ai_edge_litert.interpreter", path, "tflite")
        try:
            self._interpreter = litert.Interpreter(str(path), num_threads=options.threads)
            signatures = self._interpreter.get_signature_list()
            self._runner: Any = None
            if signatures:
                self._runner = self._interpreter.get_signature_runner(_chosen(signatures))
            else:  # from converters that are older than signatures
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise unreadable(path, "LiteRT", error) from error
        given, gives = self._details()
        inputs = [_spec(path, name, each) for name, each in given.items()]
        outputs = [_spec(path, name, each) for name, each in gives.items()]
        self.batches = first_dims_are_free([*inputs, *outputs])
        self.inputs = without_batch(inputs) if self.batches else tuple(inputs)
        self.outputs = without_batch(outputs) if self.batches else tuple(outputs)
        self._places = {name: each["index"] for name, each in (*given.items(), *gives.items())}

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the inputs and outputs."""
        if self._runner is not None:
            return self._runner.get_input_details(), self._runner.get_output_details()
        found = (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        return {each["name"]: each for each in found[0]}, {each["name"]: each for each in found[1]}

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            given = self._runner(**inputs) if self._runner is not None else self._invoked(inputs, outputs)
        except (ValueError, RuntimeError) as error:
            raise InferenceError(line(error)) from error
        arrays = {name: np.asarray(given[name]) for name in outputs}
        return {name: encoded(each) if each.dtype.kind in "OS" else each for name, each in arrays.items()}

    def _invoked(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, Any]:
        for name, array in inputs.items():
            self._interpreter.resize_tensor_input(self._places[name], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._places[name], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(self._places[name]) for name in outputs}


def _chosen(signatures: Iterable[str]) -> str:
    keys = list(signatures)
    return SIGNATURE if SIGNATURE in keys else keys[0]


def _spec(path: Path, name: str, details: Mapping[str, Any]) -> TensorSpec:
    kind = np.dtype(details["dtype"])
    try:
        datatype = Datatype.BYTES if kind.kind in "OS" else Datatype.of(kind)
    except ValueError as error:
        raise ConfigError(f"{path}: '{name}': {error}") from error
    shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    return TensorSpec(name=name, datatype=datatype, dims=tuple(ANY if size < 0 else int(size) for size in shape))
