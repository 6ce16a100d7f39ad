"""Plans of TensorRT, of which there is none here: against a library that checks how it is called.

Its GPU has the host's memory, so that what is computed there comes from where it was copied to.
"""

import ctypes
import sys
import threading
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes import cuda, load
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import refusal, run

X = np.arange(12, dtype=np.float32).reshape(4, 3)


class Mode(Enum):
    """`tensorrt.TensorIOMode`."""

    INPUT = 1
    OUTPUT = 2


class Context:
    """`tensorrt.IExecutionContext` of an engine that doubles what it is given, up to 8 rows at once."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.busy = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        self.shape = tuple(shape)
        return self.shape[0] <= 8

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "y"
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream
        with self.busy:
            count = int(np.prod(self.shape))
            x, y = ((ctypes.c_float * count).from_address(self.addresses[each]) for each in ("x", "y"))
            np.ctypeslib.as_array(y)[:] = np.ctypeslib.as_array(x) * 2
        return True


class Engine:
    """`tensorrt.ICudaEngine`."""

    num_io_tensors = 2

    def get_tensor_name(self, number: int) -> str:
        return "xy"[number]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3)

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_vectorized_dim(self, name: str) -> int:
        return -1

    def create_execution_context(self) -> Context:
        return Context()


class Library(SimpleNamespace):
    """The module `tensorrt`."""

    __version__ = "10.9"
    TensorIOMode = Mode

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        assert isinstance(logger, self.ILogger)
        return namespace == ""

    class ILogger:
        """Its base class for loggers."""

    class Runtime:
        """Reads plans."""

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if data == b"plan":
                return Engine()
            self.logger.log("Severity.ERROR", "deserializeCudaEngine: Error Code 1:\n magic tag does not match")
            return None


class Runtime:
    """CUDA's runtime library, whose device has the host's memory."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.memory: dict[int, Any] = {}
        self.cudaGetErrorString = lambda status: b"out of memory"

    def cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cudaSetDevice(self, number: int) -> int:  # noqa: N802
        return int(number >= self.gpus)

    def cudaStreamCreate(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 7
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        assert stream.value == 7
        return 0

    def cudaMalloc(self, address: Any, size: Any) -> int:  # noqa: N802
        if size.value > 1000:
            return 2
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.memory[address._obj.value] = memory
        return 0

    def cudaFree(self, address: Any) -> int:  # noqa: N802
        del self.memory[address.value]
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: int, stream: Any) -> int:  # noqa: N802
        on_device = (target if kind == 1 else source).value
        assert len(self.memory[on_device]) >= size.value
        ctypes.memmove(target, source, size.value)
        return 0


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tensorrt", Library())  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "_library", lambda: Runtime(2))
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


def test_what_it_says_and_computes(plan: Path) -> None:
    runtime = load("tensorrt", plan, RuntimeOptions(device="cuda:1"))
    assert (runtime.platform, runtime.batches, runtime.concurrent) == ("tensorrt_plan", True, True)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(3,)),)
    assert runtime.outputs == (TensorSpec(name="y", datatype=Datatype.FP32, dims=(3,)),)
    for rows in (1, 4, 2):
        np.testing.assert_array_equal(run(runtime, x=X[:rows])["y"], X[:rows] * 2)


def test_threads_have_contexts_of_their_own(plan: Path) -> None:
    runtime = load("tensorrt", plan, RuntimeOptions())
    results: list[bool] = []

    def calls(rows: int) -> None:
        given = (runtime.execute({"x": X[:rows]}, ["y"])["y"] for _ in range(50))
        results.extend(np.array_equal(each, X[:rows] * 2) for each in given)

    threads = [threading.Thread(target=calls, args=(rows,)) for rows in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(results)


def test_what_fails(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load("tensorrt", plan, RuntimeOptions())
    with pytest.raises(InferenceError, match="input 'x' has a shape that no profile of the plan has"):
        run(runtime, x=np.zeros((9, 3), np.float32))
    big = np.zeros((8, 300), np.float32)
    with pytest.raises(cuda.CudaError, match="CUDA failed: out of memory"):
        runtime.execute({"x": big}, ["y"])
    assert "needs GPU 2, and CUDA finds 2 GPUs" in refusal("tensorrt", plan, RuntimeOptions(device="cuda:2"))
    assert "computes on GPUs alone" in refusal("tensorrt", plan, RuntimeOptions(device="cpu"))
    bad = plan.with_name("bad.plan")
    bad.write_bytes(b"something else")
    message = refusal("tensorrt", bad)
    assert message.endswith("TensorRT 10.9: deserializeCudaEngine: Error Code 1: magic tag does not match")
    monkeypatch.setattr(cuda, "_library", lambda: Runtime(0))
    assert "needs GPU 0, and CUDA finds no GPUs" in refusal("tensorrt", plan)
    monkeypatch.setattr(cuda, "_library", lambda: None)
    assert "needs CUDA's runtime library, and libcudart.so is not found" in refusal("tensorrt", plan)
    plan.write_bytes(b"")
    assert refusal("tensorrt", plan) == f"{plan} is empty"
