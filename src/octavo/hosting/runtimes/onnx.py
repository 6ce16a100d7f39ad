"""ONNX models, computed by ONNX Runtime."""

import ctypes
import logging
import math
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
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import existing, library, unreadable
from octavo.hosting.runtimes.strings import decoded, encoded
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

log = logging.getLogger(__name__)

EXTRA = "onnx"
FATAL = 4
"""Of ONNX Runtime's log levels. Errors are raised: a client's mistakes need no lines of their own in the log."""

BFLOAT16 = 16
"""`onnx.TensorProto.BFLOAT16`."""

_DATATYPES = {**BY_NAME, "float": Datatype.FP32, "double": Datatype.FP64, "string": Datatype.BYTES}
_TENSOR = re.compile(r"(optional\()?tensor\((\w+)\)\)?")
_NOISE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|Status Message: |Name:'' ")
_SOURCE = re.compile(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z(\w])")
"""Where in its sources ONNX Runtime found something, which says nothing to those who read an error."""


class OnnxRuntime:
    """A session of ONNX Runtime; see `Runtime`. It has one pool of threads, which all that call it share."""

    platform = "onnxruntime_onnx"
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        self._ort = library("onnxruntime", path, EXTRA)
        self._session = self._load(existing(path), options)
        given = self._session.get_inputs()
        inputs = [self._spec(path, each) for each in given]
        outputs = [self._spec(path, each) for each in self._session.get_outputs() if self._is_tensor(path, each)]
        if not outputs:
            raise ConfigError(f"{path} has no output that is a tensor")
        self._types = {each.name: each.datatype for each in (*inputs, *outputs)}
        self._has_bf16 = Datatype.BF16 in self._types.values()
        if self._has_bf16 and Datatype.BYTES in self._types.values():
            raise ConfigError(f"{path} has both bfloat16 and string tensors, which onnxruntime does not take together")
        self._optional = [each.name for each in given if each.type.startswith("optional(")]
        self._on_cpu = self._session.get_providers() == ["CPUExecutionProvider"]
        self.batches = first_dims_are_free([*inputs, *outputs])
        names = {str(each.shape[0]) for each in (*given, *self._session.get_outputs()) if each.shape}
        if self.batches and len(names) > 1:
            self.batches = self._rows_follow(inputs, outputs)
        self.inputs = without_batch(inputs) if self.batches else tuple(inputs)
        self.outputs = without_batch(outputs) if self.batches else tuple(outputs)

    def _rows_follow(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
        """Whether there are as many rows in all outputs as in the inputs, although their dimensions' names differ.

        Exporters do not keep to one name for a batch, and what an object detector finds is none.
        """
        for rows in (2, 3):
            feed = {}
            for spec in inputs:
                assert spec.datatype is not None
                shape = (rows, *(1 if size == ANY else size for size in (spec.dims or ())[1:]))
                blank: Any = b"" if spec.datatype is Datatype.BYTES else 0
                feed[spec.name] = np.full(shape, blank, spec.datatype.dtype)
            try:
                given = self.execute(feed, [spec.name for spec in outputs])
            except Exception:  # it does not compute zeros, or not of this size, and nobody knows
                return True
            if any(each.shape[:1] != (rows,) for each in given.values()):
                return False
        return True

    def _load(self, path: Path, options: RuntimeOptions) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = FATAL
        settings.intra_op_num_threads = options.threads or 0
        # Threads that spin between calls take three times the processor's time, and frontends need it.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = _providers(Device.of(options.device, "tensorrt"), self._ort.get_available_providers(), path)
        try:
            session = self._ort.InferenceSession(path, settings, providers=wanted)
        except Exception as error:  # its classes have no common one but this
            raise unreadable(path, "onnxruntime", _plain(error)) from error
        chosen = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if chosen not in session.get_providers():
            trouble = f"onnxruntime {self._ort.__version__} has its {chosen}, but cannot use it"
            if options.device != "auto":
                raise ConfigError(f"{trouble}: are the GPU's driver, CUDA and cuDNN there? --device cpu needs none")
            log.warning("%s: %s is computed on the CPU", trouble, path.name)
        return session

    def _is_tensor(self, path: Path, node: Any) -> bool:
        if _TENSOR.fullmatch(node.type):
            return True
        log.warning("%s: output '%s' is left out: it is no tensor but a %s", path.name, node.name, node.type)
        return False

    def _spec(self, path: Path, node: Any) -> TensorSpec:
        tensor = _TENSOR.fullmatch(node.type)
        datatype = _DATATYPES.get(tensor[2]) if tensor else None
        if tensor is None or datatype is None:
            raise ConfigError(f"{path}: '{node.name}' is a {node.type}, which no request and no response can have")
        # A scalar and a tensor of any number of dimensions look the same.
        dims = tuple(size if isinstance(size, int) else ANY for size in node.shape) if node.shape else None
        return TensorSpec(name=node.name, datatype=datatype, dims=dims, optional=bool(tensor[1]))

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            if self._has_bf16:
                return self._execute_values(inputs, outputs)
            feed: dict[str, Any] = dict.fromkeys(self._optional)
            feed.update((name, self._given(name, array)) for name, array in inputs.items())
            computed = self._session.run(list(outputs), feed)
        except self._ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise InferenceError(_plain(error)) from error
        except self._ort.capi.onnxruntime_pybind11_state.Fail as error:
            # Computing an operator that could be loaded fails on a CPU if its inputs do not fit; on others, also if
            # the device does.
            if self._on_cpu and "while running" in str(error):
                raise InferenceError(_plain(error)) from error
            raise
        return {
            name: encoded(array) if self._types[name] is Datatype.BYTES else np.asarray(array)
            for name, array in zip(outputs, computed, strict=True)
        }

    def _given(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return decoded(name, array) if self._types[name] is Datatype.BYTES else array

    def _execute_values(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """With ONNX Runtime's own values, for numpy's arrays cannot be of BF16."""
        made = self._ort.OrtValue
        feed = {
            name: made.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
            if self._types[name] is Datatype.BF16
            else made.ortvalue_from_numpy(array)
            for name, array in inputs.items()
        }
        computed = self._session.run_with_ort_values(list(outputs), feed)
        return {
            name: _bits(value) if self._types[name] is Datatype.BF16 else value.numpy()
            for name, value in zip(outputs, computed, strict=True)
        }


def _providers(device: Device, available: Sequence[str], path: Path) -> list[Any]:
    """What computes, best first. Raises ConfigError: this onnxruntime has no provider for that device."""
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    if device.kind == "cpu" or (device.kind == "auto" and cuda not in available):
        return [cpu]
    placed = {"device_id": str(device.number)}
    first = "TensorrtExecutionProvider" if device.kind == "tensorrt" else cuda
    if first not in available:
        raise ConfigError(
            f"{path.name} cannot be computed on '{device.kind}': this onnxruntime has no {first}: "
            "pip install onnxruntime-gpu in place of onnxruntime, or give --device cpu",
            "device",
        )
    gpu: list[Any] = [(each, placed) for each in dict.fromkeys((first, cuda)) if each in available]
    return [*gpu, cpu]


def _bits(value: Any) -> NDArray[Any]:
    """Of a value of BF16 that lies in ONNX Runtime's memory."""
    shape = value.shape()
    count = math.prod(shape)
    if not count:
        return np.empty(shape, np.uint16)
    lent = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return lent.reshape(shape).copy()


def _plain(error: Exception) -> str:
    """What ONNX Runtime says, without what only its developers can read."""
    return _NOISE.sub("", _SOURCE.sub("", " ".join(str(error).split()))).strip()
