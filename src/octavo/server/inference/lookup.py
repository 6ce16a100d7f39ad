"""Which model a request of the Open Inference Protocol is for."""

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.info import HostedInfo
from octavo.worker.control import WorkerState


def find(deployments: Deployments, name: str, version: str = "") -> HostedDeployment:
    """The model of a name or alias.

    Args:
        version: empty for any.

    Raises:
        InferenceError: there is no such model, or not in this version.
    """
    found = deployments.get(name)
    if not isinstance(found, HostedDeployment):
        raise unknown(name)
    if version and version != found.version:
        if not version.isdecimal():
            raise InferenceError(
                f"failed to get model version from specified version string '{version:.100}', version should be an "
                "integral value > 0"
            )
        raise InferenceError(
            f"Request for unknown model: '{name:.300}' version {version:.100} is not found", Code.NOT_FOUND
        )
    return found


def unknown(name: str) -> InferenceError:
    """The error for a name that no model has."""
    return InferenceError(f"Request for unknown model: '{name:.300}' is not found", Code.NOT_FOUND)


def loaded(deployment: HostedDeployment) -> HostedInfo:
    """What is known of a model. Raises InferenceError: nothing, for it is loading, or never will be."""
    client = deployment.client
    if client.info is None or client.state in (WorkerState.FAILED, WorkerState.STOPPED):
        why = f": {client.failure}" if client.failure else f": it is {client.state.value}"
        raise InferenceError(
            f"Request for unknown model: '{deployment.name}' version {deployment.version} is not at ready state{why}",
            Code.UNAVAILABLE,
        )
    return client.info


def is_ready(deployment: HostedDeployment) -> bool:
    """Whether a model would compute a request now."""
    return deployment.client.state is WorkerState.READY
