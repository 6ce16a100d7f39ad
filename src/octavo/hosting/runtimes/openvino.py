"""OpenVINO's IR, and with `--runtime openvino` whatever else it reads: ONNX, TensorFlow, TFLite."""

import queue
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
from octavo.hosting.runtimes.files import existing, library, line, unreadable
from octavo.hosting.runtimes.strings import decoded, encoded
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

_DATATYPES = {
    "boolean": Datatype.BOOL,
    "u8": Datatype.UINT8,
    "u16": Datatype.UINT16,
    "u32": Datatype.UINT32,
    "u64": Datatype.UINT64,
    "i8": Datatype.INT8,
    "i16": Datatype.INT16,
    "i32": Datatype.INT32,
    "i64": Datatype.INT64,
    "f16": Datatype.FP16,
    "bf16": Datatype.BF16,
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
    "string": Datatype.BYTES,
}


class OpenvinoRuntime:
    """A compiled model; see `Runtime`. Each call that runs has an inference request of its own."""

    platform = "openvino"
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if not (path / "saved_model.pb").exists():
            existing(path)
        Device.cpu_only(options.device, "openvino")
        self._openvino = library("openvino", path, "openvino")
        settings = {} if options.threads is None else {"INFERENCE_NUM_THREADS": options.threads}
        if path.suffix == ".xml":
            _check_ir(path)
        try:
            # Results are those of the model, not of a rounding that the processor is fast with.
            exact = {**settings, "INFERENCE_PRECISION_HINT": "f32"}
            self._model = self._openvino.Core().compile_model(path, "CPU", exact)
        except RuntimeError as error:
            raise unreadable(path, "OpenVINO", _plain(error)) from error
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        inputs = [_spec(path, number, each) for number, each in enumerate(self._model.inputs)]
        outputs = [_spec(path, number, each) for number, each in enumerate(self._model.outputs)]
        self._places = {spec.name: place for place, spec in enumerate(outputs)}
        self.batches = first_dims_are_free([*inputs, *outputs])
        self.inputs = without_batch(inputs) if self.batches else tuple(inputs)
        self.outputs = without_batch(outputs) if self.batches else tuple(outputs)
        self._specs = {spec.name: spec for spec in self.outputs}

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._model.create_infer_request()
        try:
            for place, spec in enumerate(self.inputs):
                request.set_input_tensor(place, self._tensor(spec, inputs[spec.name]))
            request.infer()
            return {name: self._array(name, request.get_output_tensor(self._places[name])) for name in outputs}
        except RuntimeError as error:
            # On a CPU operators fail where sizes and values do not fit.
            raise InferenceError(_plain(error)) from error
        finally:
            self._requests.put(request)

    def _tensor(self, spec: TensorSpec, array: NDArray[Any]) -> Any:
        if spec.datatype is Datatype.BYTES:
            return self._openvino.Tensor(decoded(spec.name, array).astype(np.str_))
        array = np.array(array, copy=None if array.flags.writeable else True, order="C")
        if spec.datatype is Datatype.BF16:
            return self._openvino.Tensor(array, self._openvino.Shape(array.shape), self._openvino.Type.bf16)
        return self._openvino.Tensor(array, shared_memory=True)

    def _array(self, name: str, tensor: Any) -> NDArray[Any]:
        """A copy: the request's memory is used again."""
        datatype = self._specs[name].datatype
        if datatype is Datatype.BYTES:
            return encoded(np.asarray(tensor.str_data))
        array = np.array(tensor.data)
        return array.view(np.uint16) if datatype is Datatype.BF16 else array


def _spec(path: Path, number: int, port: Any) -> TensorSpec:
    name = port.any_name if port.names else f"{number}"
    kind = port.element_type.get_type_name()
    if kind not in _DATATYPES:
        raise ConfigError(f"{path}: '{name}' is a tensor of {kind}, which no request and no response can have")
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return TensorSpec(name=name, datatype=_DATATYPES[kind], dims=None)
    dims = tuple(ANY if each.is_dynamic else each.get_length() for each in shape)
    return TensorSpec(name=name, datatype=_DATATYPES[kind], dims=dims)


def _check_ir(path: Path) -> None:
    """OpenVINO tries all the formats it knows on what is no IR, and says of none what is wrong.

    Raises:
        ConfigError: it is none, or its weights are missing.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if b"<net" not in head:
        raise ConfigError(f"{path} is no IR of OpenVINO, which is XML with the element 'net'")
    weights = path.with_suffix(".bin")
    if not weights.exists():
        raise ConfigError(f"{path} needs its weights beside it, and {weights} does not exist")


def _plain(error: Exception) -> str:
    """What OpenVINO says, without where in its sources."""
    lines = [each for each in str(error).splitlines() if each.strip() and not each.startswith("Exception from")]
    return line(" ".join(lines) or error)
