"""What computes a model that is no language model: the protocol of all runtimes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from octavo.hosting.signature import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How a runtime is to load a model.

    Attributes:
        threads: that one call computes with; None leaves it to the runtime.
        device: "auto" takes a GPU if there is one that the runtime can use; or "cpu", "cuda", "cuda:1"; for ONNX also
            "tensorrt", "tensorrt:1".
        trust_pickle: whether files may be loaded that run code when they are.
        task: of a Hugging Face pipeline; empty is what its repository says.
        model_class: "file.py:Class" or "module:Class" of the model that a state dict belongs to.
    """

    threads: int | None = None
    device: str = "auto"
    trust_pickle: bool = False
    task: str = ""
    model_class: str = ""


class Runtime(Protocol):
    """A model that has been loaded. It imports its libraries when it is made, and not before.

    Attributes:
        platform: Triton's name for it, such as "onnxruntime_onnx" or "pytorch_libtorch".
        inputs, outputs: read from the model; with `batches` their dims are without the first one.
        batches: whether the first dimension of every input and output is that of the batch, and of any size; None if
            the model does not say, and whoever serves it must.
        concurrent: whether `execute` may be called in several threads at once, and computes without the GIL.
    """

    @property
    def platform(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def batches(self) -> bool | None: ...

    @property
    def concurrent(self) -> bool: ...

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Compute.

        Args:
            inputs: by name, with the dtypes of their datatypes (`Datatype.dtype`: BF16 is its bits in UInt16, BYTES are
                objects, each `bytes`), contiguous and with the batch dimension if there is one. They may be read-only.
                Optional ones may be missing.
            outputs: the names of those that are wanted, one or more.

        Returns:
            The outputs, in the same way, those without a datatype as what their dtype says (`Datatype.of`); they may
            share memory with what the runtime overwrites at its next call only if it is not `concurrent`.

        Raises:
            InferenceError: with INVALID_ARGUMENT, the inputs are to blame. Whatever else it raises is the model's.
        """
        ...


class Loader(Protocol):
    """Makes a runtime of a file or folder."""

    def __call__(self, path: Path, options: RuntimeOptions) -> Runtime:
        """Raises ConfigError: the file is no such model, cannot be loaded, or needs an extra that is not installed."""
        ...
