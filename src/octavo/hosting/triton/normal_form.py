"""A `ModelConfig` as JSON with every field, as Triton shows it: with what it takes for what is not written."""

from collections.abc import Mapping
from typing import Any

from octavo.hosting.triton.description import Description
from octavo.hosting.triton.placement import resolved_groups

INPUT: Mapping[str, Any] = {
    "name": "",
    "data_type": "TYPE_INVALID",
    "format": "FORMAT_NONE",
    "dims": [],
    "is_shape_tensor": False,
    "allow_ragged_batch": False,
    "optional": False,
    "is_non_linear_format_io": False,
}
OUTPUT: Mapping[str, Any] = {
    "name": "",
    "data_type": "TYPE_INVALID",
    "dims": [],
    "label_filename": "",
    "is_shape_tensor": False,
    "is_non_linear_format_io": False,
}
DYNAMIC_BATCHING: Mapping[str, Any] = {
    "preferred_batch_size": [],
    "max_queue_delay_microseconds": 0,
    "preserve_ordering": False,
    "priority_levels": 0,
    "default_priority_level": 0,
    "priority_queue_policy": {},
}
GROUP: Mapping[str, Any] = {
    "name": "",
    "kind": "KIND_AUTO",
    "count": 0,
    "rate_limiter": None,
    "gpus": [],
    "secondary_devices": [],
    "profile": [],
    "passive": False,
    "host_policy": "",
}
OPTIMIZATION: Mapping[str, Any] = {
    "priority": "PRIORITY_DEFAULT",
    "input_pinned_memory": {"enable": True},
    "output_pinned_memory": {"enable": True},
    "gather_kernel_buffer_threshold": 0,
    "eager_batching": False,
}
FIELDS: Mapping[str, Any] = {
    "name": "",
    "platform": "",
    "backend": "",
    "runtime": "",
    "version_policy": {"latest": {"num_versions": 1}},
    "max_batch_size": 0,
    "input": [],
    "output": [],
    "batch_input": [],
    "batch_output": [],
    "optimization": OPTIMIZATION,
    "dynamic_batching": None,
    "sequence_batching": None,
    "ensemble_scheduling": None,
    "instance_group": [],
    "default_model_filename": "",
    "cc_model_filenames": {},
    "metric_tags": {},
    "parameters": {},
    "model_warmup": [],
}


def normal_form(config: Mapping[str, Any], *, gpus: int = 0) -> dict[str, Any]:
    """All of Triton's fields, in its order.

    Args:
        config: complete. gpus: that there are.
    """
    found = {name: config.get(name, usual) for name, usual in FIELDS.items()}
    found = {name: value for name, value in found.items() if value is not None}
    found |= {name: value for name, value in config.items() if name not in FIELDS}
    found["input"] = [{**INPUT, **each} for each in found["input"]]
    found["output"] = [{**OUTPUT, **each} for each in found["output"]]
    if "dynamic_batching" in found:
        batching = {**DYNAMIC_BATCHING, **found["dynamic_batching"]}
        if not batching["preferred_batch_size"] and found["max_batch_size"]:
            batching["preferred_batch_size"] = [found["max_batch_size"]]
        found["dynamic_batching"] = batching
    if "ensemble_scheduling" in found:
        if "optimization" not in config:
            del found["optimization"]
    else:
        found["optimization"] = {**OPTIMIZATION, **found["optimization"]}
        groups = [{**GROUP, **each} for each in resolved_groups(Description.of(dict(found)), gpus)]
        found["instance_group"] = [
            {name: value for name, value in each.items() if value is not None} for each in groups
        ]
    return found
