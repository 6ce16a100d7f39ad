"""`ModelEnsembling`: an ensemble as its configuration describes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.config import RepositoryModel
from octavo.hosting.ensemble import LATEST, Ensemble, EnsembleStep
from octavo.hosting.signature import TensorSpec
from octavo.hosting.triton.description import ResponseCaching, Tensor
from octavo.hosting.triton.normal_form import normal_form


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelEnsembling.Step`."""

    model_name: str = ""
    model_version: int = LATEST
    input_map: dict[str, str] = {}
    output_map: dict[str, str] = {}
    model_namespace: str = ""


class Ensembling(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelEnsembling`."""

    step: tuple[Step, ...] = ()
    max_inflight_requests: int = 0


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelConfig` of an ensemble."""

    name: str
    max_batch_size: int = 0
    input: tuple[Tensor, ...] = ()
    output: tuple[Tensor, ...] = ()
    ensemble_scheduling: Ensembling = Ensembling()
    response_cache: ResponseCaching = ResponseCaching()


def ensemble_of(config: dict[str, Any], name: str, labels: Mapping[str, Sequence[str]] | None = None) -> Ensemble:
    """What a configuration as JSON says.

    Args:
        name: that it is served by. labels: of its outputs, by name.

    Raises:
        ConfigError: it asks for what ensembles here do not do.
    """
    described = msgspec.convert(config, Description, strict=False)
    for each in (*described.input, *described.output):
        if each.reshape is not None:
            raise ConfigError(f"'{each.name}': reshape is not supported for ensembles; its models may have one")
    for step in described.ensemble_scheduling.step:
        if step.model_namespace:
            raise ConfigError(f"model_namespace is '{step.model_namespace:.100}', which is not supported: there is one")
    return Ensemble(
        name=name,
        inputs=tuple(_spec(each) for each in described.input),
        outputs=tuple(_spec(each, (labels or {}).get(each.name, ())) for each in described.output),
        steps=tuple(_step(each) for each in described.ensemble_scheduling.step),
        max_batch_size=described.max_batch_size,
        max_inflight_requests=described.ensemble_scheduling.max_inflight_requests,
        response_cache=described.response_cache.enable,
        config=_as_triton_has_it(config),
    )


def ensemble_from(model: RepositoryModel, name: str) -> Ensemble:
    """What a model of a repository is. Raises ConfigError: as `ensemble_of`."""
    return ensemble_of(normal_form(msgspec.json.decode(model.config)), name, model.labels)


def _spec(tensor: Tensor, labels: Sequence[str] = ()) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=tensor.datatype,
        dims=tensor.dims,
        optional=tensor.optional,
        labels=tuple(labels),
    )


def _step(step: Step) -> EnsembleStep:
    version = step.model_version or LATEST
    return EnsembleStep(model=step.model_name, inputs=step.input_map, outputs=step.output_map, version=version)


def _as_triton_has_it(config: dict[str, Any]) -> dict[str, Any]:
    """All fields, but for one that came later, and says nothing in most configurations."""
    complete = normal_form(config)
    scheduling = dict(complete["ensemble_scheduling"])
    if not scheduling.get("max_inflight_requests"):
        scheduling.pop("max_inflight_requests", None)
    return {**complete, "ensemble_scheduling": scheduling}
