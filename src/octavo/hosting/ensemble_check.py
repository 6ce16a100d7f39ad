"""Whether the models of an ensemble fit together. The words are Triton's."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.ensemble import Ensemble, EnsembleStep
from octavo.hosting.info import DECOUPLED_IS_NOT_CACHED, HostedInfo
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.tensors import written


def check_models(ensemble: Ensemble, models: Sequence[HostedInfo]) -> bool:
    """See that the models, one for each step, can give each other what they take.

    Returns:
        Whether a request has any number of results.

    Raises:
        ConfigError: they cannot.
    """
    known = {
        spec.name: _Tensor(spec, ensemble.name, ensemble.max_batch_size > 0)
        for spec in (*ensemble.inputs, *ensemble.outputs)
    }
    for step, model in zip(ensemble.steps, models, strict=True):
        if 0 < model.max_batch_size < ensemble.max_batch_size:
            raise ConfigError(
                f"ensemble {ensemble.name} allows maximum batch size {ensemble.max_batch_size}, but it contains model "
                f"{step.model} which only allows maximum batch size to be {model.max_batch_size}"
            )
        _check_step(ensemble, step, model, known)
    streams = _check_streams(ensemble, models)
    if streams and ensemble.response_cache:
        raise ConfigError(DECOUPLED_IS_NOT_CACHED.format(ensemble.name))
    return streams


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What is known of a tensor, and which model says so."""

    spec: TensorSpec
    model: str
    batched: bool

    @property
    def full_dims(self) -> tuple[int, ...]:
        dims = self.spec.dims or ()
        return (ANY, *dims) if self.batched else dims

    def check(self, other: "_Tensor", place: str) -> None:
        """See that both can be the same tensor. Raises ConfigError."""
        mine, theirs = self.spec.datatype, other.spec.datatype
        if mine is not None and theirs is not None and mine is not theirs:
            raise ConfigError(
                f"{place}inconsistent data type: {type_name(mine)} is inferred from model {self.model} while "
                f"{type_name(theirs)} is inferred from model {other.model}"
            )
        if self.spec.dims is None or other.spec.dims is None:
            return
        # A batch may be what another model takes for a dimension of its own.
        if not _same(self.spec.dims, other.spec.dims) and not _same(self.full_dims, other.full_dims):
            raise ConfigError(
                f"{place}inconsistent shape: {written(self.full_dims)} is inferred from model {self.model} while "
                f"{written(other.full_dims)} is inferred from model {other.model}"
            )


def type_name(datatype: Datatype | None) -> str:
    """A datatype as configurations name it; without one, as they do if nothing is set."""
    if datatype is None:
        return "TYPE_INVALID"
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype.value}"


def _same(mine: Sequence[int], theirs: Sequence[int]) -> bool:
    return len(mine) == len(theirs) and all(ANY in (a, b) or a == b for a, b in zip(mine, theirs, strict=True))


def _check_step(ensemble: Ensemble, step: EnsembleStep, model: HostedInfo, known: dict[str, _Tensor]) -> None:
    where, batched = f"in ensemble {ensemble.name}, ", model.max_batch_size > 0
    inputs = {spec.name: spec for spec in model.inputs}
    outputs = {spec.name: spec for spec in model.outputs}
    for name, tensor in step.inputs.items():
        if name not in inputs:
            raise ConfigError(
                f"{where}ensemble tensor {tensor} is mapping to non-existing input {name} in model {step.model}"
            )
    for name, spec in inputs.items():
        if name not in step.inputs and not spec.optional:
            raise ConfigError(f"{where}input {name} in model {step.model} is not mapped to any ensemble tensors")
    for name, tensor in step.outputs.items():
        if name not in outputs:
            raise ConfigError(
                f"{where}ensemble tensor {tensor} is mapped from non-existing output {name} in model {step.model}"
            )
    for mapping, specs in ((step.inputs, inputs), (step.outputs, outputs)):
        for name, tensor in mapping.items():
            found = _Tensor(specs[name], step.model, batched)
            known.setdefault(tensor, found).check(found, f"{where}ensemble tensor {tensor}: ")


def _check_streams(ensemble: Ensemble, models: Sequence[HostedInfo]) -> bool:
    """See that whatever a model takes comes in the same number, and say whether the outputs come in any."""
    origins = {spec.name: 0 for spec in ensemble.inputs}
    waiting = list(zip(ensemble.steps, models, strict=True))
    streams = 0
    while waiting:
        step, model = next(each for each in waiting if all(tensor in origins for tensor in each[0].inputs.values()))
        waiting.remove((step, model))
        origin = _origin(ensemble, step.model, [origins[tensor] for tensor in step.inputs.values()])
        if model.streams:
            streams += 1
            origin = streams
        origins.update(dict.fromkeys(step.outputs.values(), origin))
    _origin(ensemble, ensemble.name, [origins[spec.name] for spec in ensemble.outputs])
    return streams > 0


def _origin(ensemble: Ensemble, model: str, origins: Sequence[int]) -> int:
    if len(set(origins)) > 1:
        raise ConfigError(
            f"in ensemble {ensemble.name}, step of model '{model}' receives inputs originated from different decoupled "
            "models"
        )
    return origins[0]
