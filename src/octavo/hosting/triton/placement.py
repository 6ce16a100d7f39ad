"""Where the instances of a model compute, as its instance groups say."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.triton.description import Description, Group

_GPU_FILE = re.compile(r"nvidia\d+")

_TWO_ON_A_CPU = frozenset({"onnxruntime", "tensorflow"})
"""Backends that have two instances on a CPU when nothing is said."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of a model does. Attributes: device: as `RuntimeOptions` has it. instances: that it computes."""

    device: str
    instances: int


def devices_of(description: Description, *, gpus: int) -> list[str]:
    """The device of every instance that takes requests, those that differ first.

    Args:
        gpus: that there are.

    Raises:
        ConfigError: a group needs a GPU that is not there.
    """
    devices: list[str] = []
    for number, group in enumerate(description.instance_group or (Group(),)):
        if group.passive:
            continue
        about = f"instance group {group.name or f'{description.name}_{number}'} of model {description.name}"
        _require_gpus(group, gpus, about)
        resolved = _resolved(group, description, gpus)
        if resolved.kind == "KIND_GPU":
            # With one GPU and a free choice a runtime that cannot use it computes on the CPU.
            free = group.kind == "KIND_AUTO" and gpus == 1
            devices += ["auto" if free else f"cuda:{gpu}" for gpu in resolved.gpus] * resolved.count
        else:
            devices += ["auto" if resolved.kind == "KIND_MODEL" else "cpu"] * resolved.count
    first = list(dict.fromkeys(devices))
    rest = Counter(devices) - Counter(first)
    return [*first, *rest.elements()]


def resolved_groups(description: Description, gpus: int) -> list[dict[str, Any]]:
    """The groups with what Triton takes for what they leave open, as JSON."""
    groups = description.instance_group or (Group(name=description.name),)
    found = []
    for number, group in enumerate(groups):
        resolved = _resolved(group, description, gpus)
        fields = msgspec.to_builtins(resolved)
        found.append({**fields, "name": group.name or f"{description.name}_{number}", "gpus": list(resolved.gpus)})
    return found


def _resolved(group: Group, description: Description, gpus: int) -> Group:
    there = tuple(range(gpus))
    kind = group.kind
    if kind == "KIND_AUTO":
        kind = "KIND_GPU" if gpus and set(group.gpus) <= set(there) else "KIND_CPU"
    usual = 2 if kind == "KIND_CPU" and description.backend in _TWO_ON_A_CPU else 1
    return msgspec.structs.replace(
        group,
        kind=kind,
        count=group.count or usual,
        gpus=(group.gpus or there) if kind == "KIND_GPU" else group.gpus,
    )


def _require_gpus(group: Group, gpus: int, about: str) -> None:
    if group.kind != "KIND_GPU":
        return
    if not gpus:
        raise ConfigError(f"{about} has kind KIND_GPU but no GPUs are available")
    for gpu in group.gpus:
        if gpu not in range(gpus):
            raise ConfigError(
                f"{about} specifies invalid or unsupported gpu id {gpu}. GPUs are: {', '.join(map(str, range(gpus)))}"
            )


def shares_of(devices: Sequence[str], *, concurrent: bool) -> list[Share]:
    """What each process of a model does: where a process can compute several instances at once, one for each device.

    Args:
        concurrent: whether the runtime can.
    """
    if concurrent:
        return [Share(device, instances) for device, instances in Counter(devices).items()]
    return [Share(device, 1) for device in devices]


def gpus_here() -> int:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    try:
        return sum(_GPU_FILE.fullmatch(each.name) is not None for each in Path("/dev").iterdir())
    except OSError:
        return 0
