"""What the server and its models say of themselves, as the Open Inference Protocol and its extensions have it."""

from collections.abc import Iterable, Sequence
from typing import Any

from octavo import __version__
from octavo.deployments.control import Listed
from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.worker.control import WorkerState

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
    "generate",
)
"""By Triton's names."""


def server_metadata(name: str) -> dict[str, Any]:
    """Of the server. Args: name: what it calls itself."""
    return {"name": name, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(
    deployment: HostedDeployment, info: HostedInfo, versions: Iterable[HostedDeployment] = ()
) -> dict[str, Any]:
    """Of a model: what it takes and gives, with the batch dimension in front if it has one, and its versions."""
    return {
        "name": deployment.name,
        "versions": [each.version for each in versions] or [deployment.version],
        "platform": info.platform,
        "inputs": _tensors(info, info.inputs),
        "outputs": _tensors(info, info.outputs),
    }


def _tensors(info: HostedInfo, specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    full = info.signature.full_dims
    return [{"name": each.name, "datatype": each.datatype or "", "shape": list(full(each))} for each in specs]


_STATES = {
    WorkerState.LOADING: "LOADING",
    WorkerState.READY: "READY",
    WorkerState.RESTARTING: "LOADING",
    WorkerState.FAILED: "UNAVAILABLE",
    WorkerState.STOPPED: "UNAVAILABLE",
}


def repository_index(
    deployments: Iterable[HostedDeployment], listed: Iterable[Listed] = (), *, ready: bool = False
) -> list[dict[str, str]]:
    """Every model's state and, if it is none to use, the reason.

    Args:
        listed: models that are not offered. ready: those alone that are.
    """
    index = []
    for each in deployments:
        state = _STATES[each.client.state]
        if ready and state != "READY":
            continue
        entry = {"name": each.name, "version": each.version, "state": state}
        if each.client.failure and state != "READY":
            entry["reason"] = each.client.failure
        index.append(entry)
    for other in () if ready else listed:
        fields = {"name": other.name, "version": other.version, "state": other.state, "reason": other.reason}
        index.append({name: value for name, value in fields.items() if value})
    return sorted(index, key=lambda each: (each.get("name", ""), int(each.get("version", "0"))))
