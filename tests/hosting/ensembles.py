"""Ensembles of models that compute in this process."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.step_models import OfferedModels
from octavo.hosting.batching import Batching
from octavo.hosting.datatypes import Datatype
from octavo.hosting.ensemble import Ensemble, EnsembleStep
from octavo.hosting.ensemble_client import EnsembleClient
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from tests.server.inference.fake import deployed

Arrays = dict[str, np.ndarray]


def specs(
    *names: str, dims: tuple[int, ...] = (-1,), datatype: Datatype = Datatype.FP32, **rest: Any
) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=each, datatype=datatype, dims=dims, **rest) for each in names)


X, Y = specs("x"), specs("y")


def model(
    name: str,
    function: Callable[..., Mapping[str, Any]],
    inputs: tuple[TensorSpec, ...] = X,
    outputs: tuple[TensorSpec, ...] = Y,
    *,
    batch: int = 0,
    results: int | None = None,
    **info: Any,
) -> HostedDeployment:
    """A model that computes arrays with a function; with `results`, one that streams."""

    def compute(given: Mapping[str, Encoded]) -> dict[str, Encoded]:
        arrays = {each: tensor.decode(Place(each, name)).array for each, tensor in given.items()}
        kinds = {spec.name: spec.datatype for spec in outputs}
        return {
            each: Encoded.of(
                Tensor(kinds[each] or Datatype.FP32, np.asarray(array, (kinds[each] or Datatype.FP32).dtype))
            )
            for each, array in function(**arrays).items()
        }

    described = HostedInfo(
        name=name,
        runtime="python",
        platform="python",
        inputs=inputs,
        outputs=outputs,
        batching=Batching(max_batch_size=batch) if batch else None,
        streams=results is not None,
        **info,
    )
    return deployed(described, compute, results=1 if results is None else results)


def step(name: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = -1) -> EnsembleStep:
    return EnsembleStep(model=name, inputs=dict(inputs), outputs=dict(outputs), version=version)


def ensemble(name: str, *steps: EnsembleStep, inputs: Any = X, outputs: Any = Y, **rest: Any) -> Ensemble:
    return Ensemble(name=name, inputs=inputs, outputs=outputs, steps=steps, **rest)


def offered(*models: HostedDeployment, **ensembles: Ensemble) -> tuple[Deployments, list[EnsembleClient]]:
    """A server's models with ensembles of them."""
    deployments = Deployments(models)
    clients = [EnsembleClient(each, OfferedModels(deployments)) for each in ensembles.values()]
    made = [
        HostedDeployment(name=each.name, client=client, created=1)
        for each, client in zip(ensembles.values(), clients, strict=True)
    ]
    deployments.offer([*models, *made])
    return deployments, clients
