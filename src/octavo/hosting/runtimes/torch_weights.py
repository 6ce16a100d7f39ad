"""Weights, with a class in somebody's own code that they belong to; and modules that were pickled whole."""

import inspect
import pickle
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.own_code import find_code, refusal
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.files import library, line, untrusted
from octavo.hosting.runtimes.torch_module import OUTPUT, Callee, wants_code
from octavo.hosting.signature import TensorSpec

CLASS = "--model-class file.py:Class names the class that they belong to"
_WITHIN = ("state_dict", "model_state_dict", "model")
"""Where checkpoints that have more in them keep a model's weights."""


def load_pickle(torch: Any, path: Path, options: RuntimeOptions, device: Any) -> Callee:
    """Weights that `torch.save` wrote, or a whole module if pickles are trusted."""
    try:
        loaded = torch.load(path, map_location=device, weights_only=not options.trust_pickle)
    except pickle.UnpicklingError as error:
        if options.trust_pickle or not wants_code(error):
            raise
        instead = "save a state_dict, TorchScript or an exported program"
        raise untrusted(path, "is a pickle of more than weights", instead) from error
    if isinstance(loaded, torch.nn.Module):
        return _callee(torch, path, loaded.eval(), device)
    return _with_weights(torch, path, options, device, loaded)


def load_safetensors(torch: Any, path: Path, options: RuntimeOptions, device: Any) -> Callee:
    """Weights that were written as safetensors."""
    weights = library("safetensors.torch", path, "torch").load_file(path, device=str(device))
    return _with_weights(torch, path, options, device, weights)


def _with_weights(torch: Any, path: Path, options: RuntimeOptions, device: Any, loaded: Any) -> Callee:
    weights = _weights(torch, loaded)
    if weights is None:
        raise ConfigError(f"{path} has no weights in it but a {type(loaded).__name__}")
    if not options.model_class:
        raise ConfigError(f"{path} has weights alone: {CLASS}", "model_class")
    make = find_code(options.model_class)
    try:
        module = make()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's code does
        raise refusal(f"{options.model_class}() cannot be called", error) from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"{options.model_class} makes a {type(module).__name__}, not a torch.nn.Module", "model_class"
        )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{path} has not the weights of {options.model_class}: {line(error)}") from error
    return _callee(torch, path, module.eval().to(device), device)


def _weights(torch: Any, loaded: Any) -> Mapping[str, Any] | None:
    """Those in what was loaded, without the prefix that they have if the model was trained on several GPUs."""
    if not isinstance(loaded, Mapping):
        return None
    if loaded and all(isinstance(each, torch.Tensor) for each in loaded.values()):
        weights = dict(loaded)
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")
        return weights
    return next((found for key in _WITHIN if (found := _weights(torch, loaded.get(key))) is not None), None)


def _callee(torch: Any, path: Path, module: Any, device: Any) -> Callee:
    """What `forward` says in its signature: the names of its arguments, and the type of its result if it has one."""
    what = f"{path}: {type(module).__name__}.forward"
    inputs = []
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"{what} takes {parameter}, which has no name in a request")
        if parameter.default in (parameter.empty, None):
            optional = parameter.default is None
            inputs.append(TensorSpec(name=name, datatype=None, dims=None, optional=optional))
    try:
        returned = typing.get_type_hints(module.forward).get("return", torch.Tensor)
    except Exception:  # names that nobody defined, and whatever else annotations raise
        returned = torch.Tensor
    names = _names(torch, returned)
    if names is None:
        raise ConfigError(
            f"{what} gives a {returned}, whose tensors have neither names nor a number before it is computed: return a "
            "tensor, a tuple or a NamedTuple of tensors"
        )

    def call(*tensors: Any) -> Any:
        given = {spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True) if tensor is not None}
        return module(**given)

    return Callee(
        call=call,
        inputs=tuple(inputs),
        outputs=tuple(TensorSpec(name=name, datatype=None, dims=None) for name in names),
        batches=None,
        bfloat16=any(each.dtype is torch.bfloat16 for each in module.parameters()),
    )


def _names(torch: Any, returned: Any) -> list[str] | None:
    """Of the tensors in a result of that type."""
    if returned is torch.Tensor:
        return [OUTPUT.format(0)]
    if isinstance(returned, type) and issubclass(returned, tuple) and hasattr(returned, "_fields"):
        return list(returned._fields)
    if typing.get_origin(returned) is tuple and Ellipsis not in typing.get_args(returned):
        return [OUTPUT.format(number) for number in range(len(typing.get_args(returned)))]
    return None
