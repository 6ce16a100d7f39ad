"""What an ensemble is: models, the tensors that pass between them, and whether that can work at all."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.signature import TensorSpec

LATEST = -1
"""For the version of a model: whichever is the newest."""


class EnsembleStep(msgspec.Struct, frozen=True, kw_only=True):
    """A model of an ensemble.

    Attributes:
        inputs, outputs: the model's, each with the tensor of the ensemble that it is.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    version: int = LATEST


class Ensemble(msgspec.Struct, frozen=True, kw_only=True):
    """Models that give each other tensors.

    Attributes:
        inputs, outputs: tensors that a request has, and gets.
        steps: a model computes as soon as its inputs are there, whatever their order here.
        max_batch_size: items of a request at most, along the first dimension of its tensors; 0 if that has no meaning.
        max_inflight_requests: that each step computes at once, of all that the ensemble is asked for; 0 for any number.
        response_cache: whether answers may be kept.
        config: the `ModelConfig` as JSON that says all this, if one does.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[EnsembleStep, ...]
    max_batch_size: int = 0
    max_inflight_requests: int = 0
    response_cache: bool = False
    config: dict[str, Any] | None = None


def check_flow(ensemble: Ensemble) -> None:
    """See that every tensor comes from somewhere and goes somewhere.

    Raises:
        ConfigError: one does not, in Triton's words.
    """
    name = ensemble.name
    if not ensemble.steps:
        raise ConfigError(f"must specify 'step' for ensemble '{name}'")
    sources = _sources(ensemble)
    tensors = {*sources, *(tensor for step in ensemble.steps for tensor in step.inputs.values())}
    for spec in ensemble.inputs:
        if spec.name not in tensors:
            raise ConfigError(f"ensemble input '{spec.name}' for ensemble {name} is not used")
    ready = reachable(ensemble)
    for spec in ensemble.outputs:
        if spec.name not in tensors:
            raise ConfigError(f"ensemble output '{spec.name}' for ensemble {name} is not used")
        if spec.name not in ready:
            raise ConfigError(
                f"output '{spec.name}' for ensemble '{name}' is not written{_why(spec.name, sources, ready)}"
            )
    used = {tensor for step in ensemble.steps for tensor in step.inputs.values()}
    outputs = {spec.name for spec in ensemble.outputs}
    for tensor in sorted(tensors - outputs):
        if tensor not in ready or tensor not in used:
            raise ConfigError(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")


def _sources(ensemble: Ensemble) -> dict[str, EnsembleStep]:
    """The step that gives each tensor. Raises ConfigError: several do, or a step lacks something."""
    sources: dict[str, EnsembleStep] = {}
    for number, step in enumerate(ensemble.steps):
        for what, given in (("model_name", step.model), ("input_map", step.inputs), ("output_map", step.outputs)):
            if not given:
                raise ConfigError(f"must specify '{what}' in step {number} of ensemble '{ensemble.name}'")
        for tensor in step.outputs.values():
            if tensor in sources:
                raise ConfigError(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{ensemble.name}' "
                    f"step {number}"
                )
            sources[tensor] = step
    return sources


def reachable(ensemble: Ensemble) -> set[str]:
    """The tensors that a request leads to."""
    ready = {spec.name for spec in ensemble.inputs}
    waiting = deque(ensemble.steps)
    left = len(waiting)
    while left:  # a round without a step that can begin is the last one
        step = waiting.popleft()
        if ready.issuperset(step.inputs.values()):
            ready.update(step.outputs.values())
            left = len(waiting)
        else:
            waiting.append(step)
            left -= 1
    return ready


def _why(output: str, sources: Mapping[str, EnsembleStep], ready: set[str]) -> str:
    """Where the way to an output that nothing leads to begins."""
    tensor, seen = output, {output}
    while tensor in sources:
        missing = next((each for each in sources[tensor].inputs.values() if each not in ready and each not in seen), "")
        if not missing:
            break
        tensor = missing
        seen.add(tensor)
    return "" if tensor == output else f": at least one of its depending tensors, '{tensor}', is not connected"
