"""TorchScript: what its code says of its inputs and outputs, and what was recorded when it was traced."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.torch_module import OUTPUT, Callee, datatype_of, named
from octavo.hosting.signature import ANY, TensorSpec


def load_script(torch: Any, path: Path, options: RuntimeOptions, device: Any) -> Callee:
    """A scripted or traced model. Tensors have no types in its code; a traced one remembers those of its example."""
    module = torch.jit.load(str(path), map_location=device).eval()
    schema = module.forward.schema
    arguments = [each for each in schema.arguments[1:] if _is_input(torch, path, each)]
    names = [each.name for each in arguments]
    call = _by_name(module, names)
    bfloat16 = _computes_in_bfloat16(torch, module)
    examples = _traced_inputs(path)
    if examples is None or len(examples) != len(arguments):
        inputs = tuple(_free(each.name, optional=each.has_default_value()) for each in arguments)
        outputs = _free_outputs(torch, path, schema)
        return Callee(call=call, inputs=inputs, outputs=outputs, batches=None, bfloat16=bfloat16)
    try:
        trial = Trial.of(torch, call, [example.tensor(torch, device) for example in examples])
    except Exception:  # zeros are no good example for it, and what it gives is not found out
        trial = Trial(_free_outputs(torch, path, schema), None)
    typed = []
    for name, example in zip(names, examples, strict=True):
        dims = (ANY,) * (len(example.shape) - bool(trial.batches))
        typed.append(TensorSpec(name=name, datatype=datatype_of(example.dtype), dims=dims))
    return Callee(call=call, inputs=tuple(typed), outputs=trial.outputs, batches=trial.batches, bfloat16=bfloat16)


def _free_outputs(torch: Any, path: Path, schema: Any) -> tuple[TensorSpec, ...]:
    return tuple(_free(name) for name in _output_names(torch, path, schema.returns[0].type))


def _free(name: str, optional: bool = False) -> TensorSpec:
    return TensorSpec(name=name, datatype=None, dims=None, optional=optional)


def _by_name(module: Any, names: Sequence[str]) -> Callable[..., Any]:
    """By their names, for arguments between them may be left out."""

    def call(*tensors: Any) -> Any:
        given = {name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None}
        result = module(**given)
        return tuple(result) if isinstance(result, tuple) else result  # names of fields are known only here

    return call


def _computes_in_bfloat16(torch: Any, module: Any) -> bool:
    return any(each.dtype is torch.bfloat16 for each in module.parameters())


def _is_input(torch: Any, path: Path, argument: Any) -> bool:
    """Whether an argument of `forward` is a tensor; others are left out. Raises ConfigError: it cannot be left out."""
    kind = argument.type
    if isinstance(kind, torch.OptionalType):
        kind = kind.getElementType()
    if isinstance(kind, torch.TensorType):
        return True
    if argument.has_default_value():
        return False
    raise ConfigError(
        f"{path}: forward's argument '{argument.name}' is a {argument.type}, and requests have tensors: give it a "
        "default, or take a tensor"
    )


def _output_names(torch: Any, path: Path, kind: Any) -> list[str]:
    """Of what `forward` returns. Raises ConfigError: only computing it would tell."""
    if isinstance(kind, torch.TensorType):
        return [OUTPUT.format(0)]
    if isinstance(kind, torch.TupleType) and all(isinstance(each, torch.TensorType) for each in kind.elements()):
        return [OUTPUT.format(number) for number in range(len(kind.elements()))]
    raise ConfigError(
        f"{path}: forward gives a {kind}, whose tensors have neither names nor a number before it is computed: return "
        "a tensor or a tuple of tensors, or trace the model with an example"
    )


@dataclass(frozen=True, slots=True)
class Example:
    """The kind of tensor that a model was traced with; its dtype by PyTorch's name."""

    shape: tuple[int, ...]
    dtype: str

    def tensor(self, torch: Any, device: Any) -> Any:
        """One like it, of zeros."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype), device=device)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a model gives for examples of its inputs.

    Attributes:
        outputs: without their first dimension if there are batches.
        batches: whether rows have the same results together as apart; None if the model does not compute that.
    """

    outputs: tuple[TensorSpec, ...]
    batches: bool | None

    @classmethod
    def of(cls, torch: Any, call: Callable[..., Any], examples: Sequence[Any]) -> "Trial":
        """Computes them. Raises what the model does if it cannot."""
        with torch.inference_mode():
            alone = named(torch, call(*examples))
            batches = cls._batches(torch, call, examples, alone)
        outputs = tuple(
            TensorSpec(name=name, datatype=_known(name, each), dims=(ANY,) * (each.ndim - bool(batches)))
            for name, each in alone.items()
        )
        return cls(outputs, batches)

    @staticmethod
    def _batches(torch: Any, call: Callable[..., Any], examples: Sequence[Any], alone: dict[str, Any]) -> bool | None:
        sizes = {each.shape[0] if each.ndim else 0 for each in (*examples, *alone.values())}
        if len(sizes) != 1 or 0 in sizes:
            return False
        # Others than those of the example, so that an average over the batch, say, gives other values.
        others = [torch.ones_like(each) for each in examples]
        try:
            apart = named(torch, call(*others))
            together = named(torch, call(*map(torch.cat, zip(examples, others, strict=True))))
        except Exception:  # whatever a model raises for a batch of another size than it was traced with
            return None
        return all(_same(torch, (alone[name], apart[name]), together[name]) for name in alone)


def _same(torch: Any, parts: Sequence[Any], whole: Any) -> bool:
    """Whether rows that were computed apart are those that were computed together."""
    joined = torch.cat(tuple(parts))
    return joined.shape == whole.shape and bool(
        torch.allclose(joined.double(), whole.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
    )


def _known(name: str, tensor: Any) -> Datatype:
    datatype = datatype_of(tensor.dtype)
    if datatype is None:
        raise TypeError(f"'{name}' is a tensor of {tensor.dtype}, which no response can have")
    return datatype


def _traced_inputs(path: Path) -> list[Example] | None:
    """The kinds of tensors that `forward` was traced with; None if it was not, or with something else."""
    with zipfile.ZipFile(path) as archive:
        name = next((each for each in archive.namelist() if each.endswith("/traced_inputs.pkl")), None)
        data = archive.read(name) if name else None
    if data is None:
        return None
    try:
        traced = _TracedInputs(io.BytesIO(data)).load()["forward"]
        return [Example(tuple(shape), dtype) for dtype, shape in traced]
    except Exception:  # what is written there is PyTorch's own affair
        return None


class _TracedInputs(pickle.Unpickler):
    """Reads the dtypes and shapes of tensors that were saved without their elements; makes nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name.removesuffix("Storage")
        return {
            "torch.jit._pickle.restore_type_tag": lambda value, _tag: value,
            "torch._utils._rebuild_tensor_v2": lambda dtype, _offset, shape, *_: (dtype, shape),
            "collections.OrderedDict": OrderedDict,
        }[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> str:
        return _STORAGES[pid[1]]


_STORAGES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
}
"""The dtypes of PyTorch's typed storages."""
