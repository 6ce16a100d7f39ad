"""What the server and its models say of themselves, as the Open Inference Protocol and its extensions have it."""

from collections.abc import Iterable, Sequence
from typing import Any

from octavo import __version__
from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.worker.control import WorkerState

SERVER_NAME = "octavo"

EXTENSIONS = (
    "classification",
    "model_repository",
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

LOG_SETTINGS: dict[str, Any] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
"""What the logging extension says; `--log-level` is what decides."""

TRACE_SETTINGS: dict[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""What the trace extension says: nothing is traced."""

REPOSITORY_IS_FIXED = "explicit model load / unload is not allowed if polling is enabled"
"""Why no model is loaded or unloaded, in Triton's words for a repository that clients do not control."""


def server_metadata() -> dict[str, Any]:
    """Of the server."""
    return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(deployment: HostedDeployment, info: HostedInfo) -> dict[str, Any]:
    """Of a model: what it takes and gives, with the batch dimension in front if it has one."""
    return {
        "name": deployment.name,
        "versions": [deployment.version],
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


def repository_index(deployments: Iterable[HostedDeployment], *, ready: bool = False) -> list[dict[str, str]]:
    """Every model's state and, if it is none to use, the reason.

    Args:
        ready: those alone that are.
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
    return index
