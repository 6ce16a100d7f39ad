"""A configuration and the model that it is about: the one completes the other, and they must not differ."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.runtime import Runtime
from octavo.hosting.signature import ANY, TensorSpec, without_batch
from octavo.hosting.tensors import written
from octavo.hosting.triton.description import Description, Tensor, data_type_of

_NUMBERED = re.compile(r".*__(\d+)")
"""Names of tensors that have none in TorchScript: what counts is the number."""


def complete(config: dict[str, Any], runtime: Runtime, batch_size: int) -> None:
    """Write what a configuration leaves open of inputs, outputs, batch size and batching, as Triton's backends do.

    Args:
        batch_size: of models that can be computed in batches, and whose configuration says nothing of it.

    Raises:
        ConfigError: it asks for batches, and the model cannot be computed so.
    """
    if config.get("input") and config.get("output"):
        return
    if runtime.batches is False:
        if config.get("max_batch_size"):
            raise ConfigError(
                f"autofill failed for model '{config['name']}': model does not support batching while non-zero "
                "max_batch_size is specified"
            )
    elif runtime.batches:
        config["max_batch_size"] = config.get("max_batch_size") or batch_size
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            config.setdefault("dynamic_batching", {})
    batched = bool(config.get("max_batch_size"))
    for field, specs in (("input", runtime.inputs), ("output", runtime.outputs)):
        if not config.get(field):
            # What a model does not say of its batches, whoever configures it does.
            own = without_batch(specs) if batched and not runtime.batches else specs
            config[field] = [_tensor(spec, batched, config["name"], field) for spec in own]


def _tensor(spec: TensorSpec, batched: bool, model: str, field: str) -> dict[str, Any]:
    if spec.datatype is None or spec.dims is None:
        unknown = "which type" if spec.datatype is None else "how many dimensions"
        raise ConfigError(
            f"the file of model '{model}' does not say {unknown} its {field} '{spec.name}' has: the configuration "
            "must, with max_batch_size, input and output"
        )
    found: dict[str, Any] = {"name": spec.name, "data_type": data_type_of(spec.datatype), "dims": list(spec.dims)}
    if not spec.dims:
        found["dims"] = [1]
        if batched:
            found["reshape"] = {"shape": []}
    if field == "input" and spec.optional:
        found["optional"] = True
    return found


def names_in_model(description: Description, runtime: Runtime) -> tuple[dict[str, str], dict[str, str]]:
    """What the inputs and outputs of a configuration are called in the model.

    Raises:
        ConfigError: there are others in the model.
    """
    by_number = runtime.platform.startswith(("pytorch", "torch"))
    inputs = _names("input", description.input, runtime.inputs, by_number)
    outputs = _names("output", description.output, runtime.outputs, by_number)
    missing = [each.name for each in runtime.inputs if not each.optional and each.name not in inputs.values()]
    if missing:
        raise ConfigError(
            f"unable to load model '{description.name}', configuration expects {len(description.input)} inputs, model "
            f"provides {len(runtime.inputs)}: it has no {', '.join(missing)}"
        )
    return inputs, outputs


def _names(kind: str, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], by_number: bool) -> dict[str, str]:
    known = [each.name for each in specs]
    found = {each.name: each.name for each in tensors if each.name in known}
    if by_number and len(found) < len(tensors):
        found = _names_by_number(tensors, known)
    for each in tensors:
        if each.name not in found:
            raise ConfigError(f"unexpected inference {kind} '{each.name}', allowed {kind}s are: {', '.join(known)}")
    return found


def _names_by_number(tensors: Sequence[Tensor], known: Sequence[str]) -> dict[str, str]:
    """By the numbers at the ends of their names, or else by their order."""
    numbers = [_NUMBERED.fullmatch(each.name) for each in tensors]
    order = [int(each[1]) for each in numbers if each] if all(numbers) else list(range(len(tensors)))
    return {each.name: known[place] for each, place in zip(tensors, order, strict=True) if place < len(known)}


def check_agreement(description: Description, runtime: Runtime, names: tuple[Mapping[str, str], ...]) -> None:
    """Compare types and dimensions with those that the model says it has. Raises ConfigError: they differ."""
    batched = description.max_batch_size > 0
    for kind, tensors, specs, called in (
        ("input", description.input, runtime.inputs, names[0]),
        ("output", description.output, runtime.outputs, names[1]),
    ):
        there = {spec.name: spec for spec in specs}
        for each in tensors:
            spec = there[called[each.name]]
            if spec.datatype is not None and spec.datatype is not each.datatype:
                raise ConfigError(
                    f"unable to load model '{description.name}', configuration expects datatype {each.data_type} for "
                    f"{kind} '{each.name}', model provides {data_type_of(spec.datatype)}"
                )
            if spec.dims is not None and not each.allow_ragged_batch:
                own = (ANY, *spec.dims) if runtime.batches else spec.dims
                _check_dims(description, each, own, batched, exact=kind == "output")


def _check_dims(description: Description, each: Tensor, own: Sequence[int], batched: bool, *, exact: bool) -> None:
    about = f"model '{description.name}', tensor '{each.name}'"
    if not own:
        if any(size != 1 for size in each.own_dims):
            raise ConfigError(
                f"unable to load {about}: a scalar has dims of 1 alone, and the configuration has "
                f"{written(each.own_dims)}"
            )
        return
    if batched and own[0] != ANY:
        raise ConfigError(
            f"{about}: for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {written(own)}"
        )
    given = (ANY, *each.own_dims) if batched else each.own_dims
    if len(given) == len(own) and all(
        mine == wanted or (mine == ANY and not exact) for mine, wanted in zip(own, given, strict=True)
    ):
        return
    why = "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete"
    raise ConfigError(
        f"{about}: the model expects {len(own)} dimensions (shape {written(own)}) but the model configuration "
        f"specifies {len(given)} dimensions ({f'{why} ' if batched else ''}shape {written(given)})"
    )
