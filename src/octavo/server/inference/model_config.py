"""A model's configuration, as Triton's `ModelConfig` (model_config.proto) is written in JSON."""

from collections.abc import Mapping
from typing import Any

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.batching import Batching, QueuePolicy
from octavo.hosting.datatypes import Datatype
from octavo.hosting.ensemble import Ensemble
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import ANY, TensorSpec

_BACKENDS: Mapping[str, str] = {"onnx": "onnxruntime", "torch": "pytorch"}
"""Triton's names of runtimes that have another one here."""

_ON_A_GPU = "tensorrt_plan"

_MICROSECONDS = 1e6


def model_config(deployment: HostedDeployment, info: HostedInfo) -> dict[str, Any]:
    """All of Triton's fields, in its order, with its defaults for what does not exist here."""
    if info.config is not None:
        return info.config
    backend = _BACKENDS.get(info.runtime, info.runtime)
    config: dict[str, Any] = {
        "name": deployment.name,
        "platform": "" if info.platform == backend and info.ensemble is None else info.platform,
        "backend": backend if info.ensemble is None else "",
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": info.max_batch_size,
        "input": [_input(each) for each in info.inputs],
        "output": [_output(each) for each in info.outputs],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": False},
            "output_pinned_memory": {"enable": False},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
    }
    if info.ensemble is not None:
        del config["optimization"]
        config["ensemble_scheduling"] = _ensemble_scheduling(info.ensemble)
    elif info.batching is not None:
        config["dynamic_batching"] = _dynamic_batching(info.batching)
    config |= {
        "instance_group": [] if info.ensemble is not None else [_instances(deployment, info)],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }
    if info.streams:
        config["model_transaction_policy"] = {"decoupled": True}
    if info.response_cache:
        config["response_cache"] = {"enable": True}
    return config


def type_name(datatype: Datatype | None) -> str:
    """A datatype as configurations name it; without one, as they do if nothing is set."""
    if datatype is None:
        return "TYPE_INVALID"
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype.value}"


def _dims(spec: TensorSpec) -> list[int]:
    return [ANY] if spec.dims is None else list(spec.dims)


def _input(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": type_name(spec.datatype),
        "format": "FORMAT_NONE",
        "dims": _dims(spec),
        "is_shape_tensor": False,
        "allow_ragged_batch": spec.ragged,
        "optional": spec.optional,
        "is_non_linear_format_io": False,
    }


def _output(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": type_name(spec.datatype),
        "dims": _dims(spec),
        "label_filename": "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _ensemble_scheduling(ensemble: Ensemble) -> dict[str, Any]:
    steps = [
        {
            "model_name": each.model,
            "model_version": each.version,
            "input_map": dict(each.inputs),
            "output_map": dict(each.outputs),
            "model_namespace": "",
        }
        for each in ensemble.steps
    ]
    return {"step": steps, "max_inflight_requests": ensemble.max_inflight_requests}


def _dynamic_batching(batching: Batching) -> dict[str, Any]:
    """A delay that adapts is 0 here: nobody is made to wait for so long whatever happens."""
    return {
        "preferred_batch_size": list(batching.preferred_batch_sizes),
        "max_queue_delay_microseconds": round((batching.max_queue_delay or 0.0) * _MICROSECONDS),
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "default_queue_policy": _policy(batching.default_policy),
        "priority_queue_policy": {str(level): _policy(policy) for level, policy in batching.policies.items()},
    }


def _policy(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": "DELAY" if policy.delays else "REJECT",
        "default_timeout_microseconds": round(policy.default_timeout * _MICROSECONDS),
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _instances(deployment: HostedDeployment, info: HostedInfo) -> dict[str, Any]:
    return {
        "name": f"{deployment.name}_0",
        "kind": "KIND_GPU" if info.platform == _ON_A_GPU else "KIND_CPU",
        "count": info.instances,
        "gpus": [],
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }
