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
    if isinstance(found, HostedDeployment) and (not version or version == found.version):
        return found
    if not isinstance(found, HostedDeployment):
        raise unknown(name, _reason(deployments, name))
    if not version.isdecimal():
        raise InferenceError(
            f"failed to get model version from specified version string '{version:.100}', version should be an "
            "integral value > 0"
        )
    other = deployments.versions(name).get(version)
    if not isinstance(other, HostedDeployment):
        raise InferenceError(
            f"Request for unknown model: '{name:.300}' version {version:.100} is not found", Code.NOT_FOUND
        )
    return other


def versions_of(deployments: Deployments, name: str) -> list[HostedDeployment]:
    """All versions of a model, the lowest first."""
    found = [each for each in deployments.versions(name).values() if isinstance(each, HostedDeployment)]
    return sorted(found, key=lambda each: int(each.version))


def statistics_of(deployments: Deployments, name: str, version: str = "") -> list[HostedDeployment]:
    """Those whose statistics are asked for. Raises InferenceError: there is no such model, or not in this version."""
    models = versions_of(deployments, name)
    if not models:
        raise InferenceError(f"requested model '{name:.300}' is not available")
    if not version:
        return models
    wanted = [each for each in models if each.version == version]
    if not wanted:
        raise InferenceError(f"requested model version is not available for model '{name:.300}'")
    return wanted


def _reason(deployments: Deployments, name: str) -> str:
    """Why a model of a repository is not offered."""
    return next((each.reason for each in deployments.listed if each.name == name and each.reason), "")


def unknown(name: str, reason: str = "") -> InferenceError:
    """The error for a name that no model has that is offered, with the reason if there is one."""
    what = f"has no available versions: {reason}" if reason else "is not found"
    return InferenceError(f"Request for unknown model: '{name:.300}' {what}", Code.NOT_FOUND)


def loaded(deployment: HostedDeployment) -> HostedInfo:
    """What is known of a model. Raises InferenceError: nothing, for it is loading, or never will be."""
    client = deployment.client
    info = client.available
    if info is None:
        why = f": {client.failure}" if client.failure else f": it is {client.state.value}"
        raise InferenceError(
            f"Request for unknown model: '{deployment.name}' version {deployment.version} is not at ready state{why}",
            Code.UNAVAILABLE,
        )
    return info


def is_ready(deployment: HostedDeployment) -> bool:
    """Whether a model would compute a request now."""
    return deployment.client.state is WorkerState.READY


async def confirms(deployment: HostedDeployment) -> bool:
    """The same, and whether the model's own code says so, if it says anything of it."""
    return is_ready(deployment) and await deployment.client.confirms()
