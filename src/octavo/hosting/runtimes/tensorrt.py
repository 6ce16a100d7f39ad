"""Plans of TensorRT, by the interface that its versions 10 and 11 have.

A plan belongs to the version of TensorRT and the kind of GPU that it was built with.
"""

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
from octavo.hosting.runtimes.cuda import Buffer, Cuda
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import existing, library, unreadable
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

_DATATYPES = {
    "BOOL": Datatype.BOOL,
    "UINT8": Datatype.UINT8,
    "INT8": Datatype.INT8,
    "INT32": Datatype.INT32,
    "INT64": Datatype.INT64,
    "HALF": Datatype.FP16,
    "BF16": Datatype.BF16,
    "FLOAT": Datatype.FP32,
}


class TensorrtRuntime:
    """An engine; see `Runtime`. Each call that runs has an execution context, a stream and memory of its own."""

    platform = "tensorrt_plan"
    concurrent = True

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        existing(path)
        device = Device.of(options.device)
        if device.kind == "cpu":
            raise ConfigError(f"{path.name} is a plan of TensorRT, which computes on GPUs alone", "device")
        self._tensorrt = library("tensorrt", path, "tensorrt")
        self._cuda = Cuda.on(device.number, path)
        self._said = _Said()
        self._engine = self._load(path)
        specs = [self._spec(path, self._engine.get_tensor_name(each)) for each in range(self._engine.num_io_tensors)]
        mode = self._tensorrt.TensorIOMode.INPUT
        inputs = [each for each in specs if self._engine.get_tensor_mode(each.name) == mode]
        outputs = [each for each in specs if self._engine.get_tensor_mode(each.name) != mode]
        self.batches = first_dims_are_free(specs)
        self.inputs = without_batch(inputs) if self.batches else tuple(inputs)
        self.outputs = without_batch(outputs) if self.batches else tuple(outputs)
        self._contexts: queue.SimpleQueue[_Context] = queue.SimpleQueue()

    def _load(self, path: Path) -> Any:
        said = self._said

        class Logger(self._tensorrt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                said.hear(str(severity), message)

        self._logger = Logger()  # it must outlive what was made with it
        self._tensorrt.init_libnvinfer_plugins(self._logger, "")
        self._builder = self._tensorrt.Runtime(self._logger)
        engine = self._builder.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise unreadable(path, f"TensorRT {self._tensorrt.__version__}", said.error or "it does not say why")
        return engine

    def _spec(self, path: Path, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DATATYPES:
            raise ConfigError(f"{path}: '{name}' is a tensor of {kind}, which no request and no response can have")
        if self._engine.is_shape_inference_io(name) or self._engine.get_tensor_vectorized_dim(name) != -1:
            raise ConfigError(f"{path}: '{name}' is a tensor of shapes, or of vectors, which are not supported")
        dims = tuple(size if size >= 0 else ANY for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name=name, datatype=_DATATYPES[kind], dims=dims)

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        self._cuda.use()
        try:
            context = self._contexts.get_nowait()
        except queue.Empty:
            context = _Context(self._cuda, self._engine.create_execution_context())
        try:
            return self._execute(context, inputs, outputs)
        finally:
            self._contexts.put(context)

    def _execute(
        self, context: "_Context", inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        for spec in self.inputs:
            array = inputs[spec.name]
            if not context.trt.set_input_shape(spec.name, array.shape):
                raise InferenceError(f"input '{spec.name}' has a shape that no profile of the plan has: {self._said}")
            context.place(spec.name, array.nbytes).write(array, context.stream)
        results = {}
        for spec in self.outputs:
            assert spec.datatype is not None
            shape = tuple(context.trt.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise RuntimeError(
                    f"the size of output '{spec.name}' depends on what is computed, which is not supported"
                )
            results[spec.name] = np.empty(shape, spec.datatype.dtype)
            context.place(spec.name, results[spec.name].nbytes)
        if not context.trt.execute_async_v3(context.stream):
            raise RuntimeError(f"TensorRT failed: {self._said}")
        for name in outputs:
            context.buffers[name].read(results[name], context.stream)
        self._cuda.synchronize(context.stream)
        return {name: results[name] for name in outputs}


class _Context:
    """What one call needs at a time; it stays for the next."""

    def __init__(self, cuda: Cuda, trt: Any) -> None:
        self.trt = trt
        self.stream = cuda.stream()
        self.buffers: dict[str, Buffer] = {}
        self._cuda = cuda

    def place(self, name: str, size: int) -> Buffer:
        """Memory for a tensor, which TensorRT is told of."""
        buffer = self.buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self.buffers[name] = Buffer(self._cuda, max(size, 1))
        self.trt.set_tensor_address(name, buffer.address)
        return buffer


class _Said:
    """The last error that TensorRT has logged: it raises none."""

    def __init__(self) -> None:
        self.error = ""

    def hear(self, severity: str, message: str) -> None:
        if "ERROR" in severity:
            self.error = message

    def __str__(self) -> str:
        return self.error or "it does not say why"
