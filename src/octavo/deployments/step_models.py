"""The models that ensembles are made of, and that other models ask: whatever is offered under their names."""

from dataclasses import dataclass

from octavo.deployments.deployment import Deployment
from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.registry import Deployments, Use
from octavo.hosting.ensemble import LATEST, EnsembleStep
from octavo.hosting.ensemble_client import StepModel
from octavo.hosting.model_client import ModelClient

STREAM = "stream"
"""The input of a language model by which its text is wanted in pieces."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A language model that is asked with tensors."""

    deployment: Deployment
    client: ModelClient


class OfferedModels:
    """What a server offers, as `octavo.hosting.ensemble_client.Models`."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments
        self._language: dict[tuple[str, bool], LanguageModel] = {}

    def find(self, step: EnsembleStep) -> StepModel | None:
        """The model of a step, if it is offered in that version."""
        found = self._deployments.get(step.model)
        if isinstance(found, HostedDeployment):
            if step.version != LATEST:
                found = self._deployments.versions(step.model).get(str(step.version))
            return found if isinstance(found, HostedDeployment) else None
        if found is None or self._deployments.as_tensors is None:
            return None
        streams = STREAM in step.inputs
        known = self._language.get((step.model, streams))
        if known is None or known.deployment is not found:
            known = LanguageModel(found, self._deployments.as_tensors(found, streams))
            self._language[step.model, streams] = known
        return known

    def hold(self, model: StepModel) -> Use:
        """Keep a model until a request has ended."""
        assert isinstance(model, HostedDeployment | LanguageModel), "as `find` has found it"
        use = self._deployments.begin()
        use.choose(model if isinstance(model, HostedDeployment) else model.deployment)
        return use
