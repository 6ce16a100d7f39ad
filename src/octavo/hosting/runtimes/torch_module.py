"""What is the same for all models that PyTorch computes: arrays become tensors, and what a call gives arrays."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.datatypes import BY_NAME, Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.devices import Device
from octavo.hosting.runtimes.files import line
from octavo.hosting.signature import TensorSpec

OUTPUT = "OUTPUT__{}"
"""As Triton names the results of TorchScript, which have no names."""

_DEVICE = ("CUDA", "CUBLAS", "CUDNN", "allocate memory")
"""What errors speak of for which a device is to blame, and that have no class of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """A model as PyTorch calls it.

    Attributes:
        call: takes a tensor, or None, for each of the inputs in their order; gives tensors, as `named` takes them.
        checks: whether it is certain to refuse what it cannot compute, before it computes.
        bfloat16: whether it computes in BF16, so that UInt16 for an input of any datatype is meant as that.
    """

    call: Callable[..., Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: bool | None
    concurrent: bool = True
    bfloat16: bool = False


class TorchRuntime:
    """A model that PyTorch computes; see `Runtime`."""

    platform = "pytorch_libtorch"

    def __init__(self, torch: Any, device: Any, callee: Callee) -> None:
        self.inputs = callee.inputs
        self.outputs = callee.outputs
        self.batches = callee.batches
        self.concurrent = callee.concurrent
        self._torch = torch
        self._device = device
        self._callee = callee
        self._specs = {spec.name: spec for spec in callee.outputs}

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        tensors = [
            self._tensor(spec, inputs[spec.name]) if spec.name in inputs else None for spec in self._callee.inputs
        ]
        try:
            with self._torch.inference_mode():
                results = named(self._torch, self._callee.call(*tensors))
        except (self._torch.OutOfMemoryError, self._torch.AcceleratorError):
            raise
        except (RuntimeError, IndexError, AssertionError) as error:
            if any(word in str(error) for word in _DEVICE):
                raise
            # Operators and the guards of an exported program raise these where sizes, dtypes or values do not fit.
            raise InferenceError(reason(error)) from error
        absent = [name for name in outputs if name not in results]
        if absent:
            raise TypeError(f"forward gives {', '.join(results)}, and no {', '.join(absent)}")
        return {name: self._array(self._specs[name], results[name]) for name in outputs}

    def _tensor(self, spec: TensorSpec, array: NDArray[Any]) -> Any:
        if array.dtype == object:
            raise InferenceError(f"input '{spec.name}' is BYTES, and the model takes numbers")
        tensor = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        if spec.datatype is Datatype.BF16 or (spec.datatype is None and self._callee.bfloat16):
            tensor = tensor.view(self._torch.bfloat16) if array.dtype == np.uint16 else tensor
        return tensor.to(self._device)

    def _array(self, spec: TensorSpec, tensor: Any) -> NDArray[Any]:
        """Those of BF16 are FP32 if nobody said that they are BF16: else nobody would know."""
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        if tensor.dtype is self._torch.bfloat16:
            tensor = tensor.view(self._torch.uint16) if spec.datatype is Datatype.BF16 else tensor.float()
        array: NDArray[Any] = tensor.numpy()
        return array


def datatype_of(dtype: Any) -> Datatype | None:
    """Of a dtype of PyTorch's; None if no tensor of a request has it."""
    return BY_NAME.get(str(dtype).removeprefix("torch."))


def named(torch: Any, result: Any) -> dict[str, Any]:
    """The tensors that a call gives, by the keys of a dictionary, the fields of a named tuple, or by their number.

    Raises:
        TypeError: it gives something else.
    """
    if isinstance(result, torch.Tensor):
        return {OUTPUT.format(0): result}
    if isinstance(result, Mapping):
        found = {str(key): value for key, value in result.items()}
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        found = dict(zip(result._fields, result, strict=True))
    elif isinstance(result, list | tuple):
        found = {OUTPUT.format(number): value for number, value in enumerate(result)}
    else:
        raise TypeError(f"forward gives a {type(result).__name__}, not tensors")
    tensors = {name: value for name, value in found.items() if value is not None}
    if wrong := [f"{name} is a {type(each).__name__}" for name, each in tensors.items() if not hasattr(each, "dtype")]:
        raise TypeError(f"forward gives something that is no tensor: {', '.join(wrong)}")
    return tensors


def reason(error: Exception) -> str:
    """What an operator says, without where in somebody's sources it was called."""
    lines = [each for each in str(error).splitlines() if each.strip()]
    if not lines:
        return type(error).__name__
    text = lines[-1] if "TorchScript" in lines[0] else lines[0]
    return line(text.removeprefix("RuntimeError: "))


def device_of(torch: Any, options: RuntimeOptions) -> Any:
    """Where a model is computed. Raises ConfigError: there is no such device."""
    device = Device.of(options.device)
    if device.kind == "cpu" or (device.kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.number >= count:
        there = f"the installed PyTorch ({torch.__version__}) finds {count or 'no'} GPU{'' if count == 1 else 's'}"
        raise ConfigError(f"device is '{options.device}', and {there}: --device cpu needs none", "device")
    return torch.device("cuda", device.number)


@contextmanager
def only_weights(options: RuntimeOptions) -> Iterator[None]:
    """No pickle that PyTorch loads in here can run code, wherever in PyTorch it is loaded, unless that is trusted."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if not options.trust_pickle:
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextmanager
def heard(*loggers: str) -> Iterator[list[BaseException]]:
    """The errors that parts of PyTorch tell their log, and raise others for."""
    errors: list[BaseException] = []

    def listen(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            errors.append(record.exc_info[1])
        return False

    for logger in loggers:
        logging.getLogger(logger).addFilter(listen)
    try:
        yield errors
    finally:
        for logger in loggers:
            logging.getLogger(logger).removeFilter(listen)


def wants_code(error: BaseException) -> bool:
    """Whether this is PyTorch's refusal to make what is no weight."""
    kinds = ("GLOBAL", "Trying to call", "Can only")
    while not isinstance(error, pickle.UnpicklingError):
        if error.__context__ is None:
            return False
        error = error.__context__
    return any(kind in str(error) for kind in kinds)


def plain(error: BaseException) -> BaseException | str:
    """What PyTorch says of a pickle, without its advice how to load it all the same."""
    _, found, what = str(error).partition("WeightsUnpickler error:")
    return what.partition("\n\n")[0] if found else error
