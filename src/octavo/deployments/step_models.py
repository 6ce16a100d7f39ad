"""The models that ensembles are made of: whatever is offered under their names."""

from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.registry import Deployments, Use
from octavo.hosting.ensemble import LATEST, EnsembleStep
from octavo.hosting.ensemble_client import StepModel


class OfferedModels:
    """What a server offers, as `octavo.hosting.ensemble_client.Models`."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    def find(self, step: EnsembleStep) -> HostedDeployment | None:
        """The model of a step, if it is offered in that version."""
        found = self._deployments.get(step.model)
        if not isinstance(found, HostedDeployment) or step.version not in (LATEST, int(found.version)):
            return None
        return found

    def hold(self, model: StepModel) -> Use:
        """Keep a model until a request has ended."""
        assert isinstance(model, HostedDeployment), "as `find` has found it"
        use = self._deployments.begin()
        use.choose(model)
        return use
