"""Where the instances of a model compute, as its instance groups say."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.rate_limits import GLOBAL, Limits, Resource
from octavo.hosting.triton.description import Description, Group, GroupLimiter

_GPU_FILE = re.compile(r"nvidia\d+")

_TWO_ON_A_CPU = frozenset({"onnxruntime", "tensorflow"})
"""Backends that have two instances on a CPU when nothing is said."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An instance. Attributes: device: as `RuntimeOptions` has it. limits: what it needs to compute."""

    device: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of a model does. Attributes: device: as for `Placed`. instances: that it computes."""

    device: str
    instances: tuple[Limits, ...]


def placed_instances(description: Description, *, gpus: int) -> list[Placed]:
    """Every instance that takes requests, those whose devices differ first.

    Args:
        gpus: that there are.

    Raises:
        ConfigError: a group needs a GPU that is not there.
    """
    placed: list[Placed] = []
    for number, group in enumerate(description.instance_group or (Group(),)):
        if group.passive:
            continue
        about = f"instance group {group.name or f'{description.name}_{number}'} of model {description.name}"
        _require_gpus(group, gpus, about)
        resolved = _resolved(group, description, gpus)
        if resolved.kind == "KIND_GPU":
            # With one GPU and a free choice a runtime that cannot use it computes on the CPU.
            free = group.kind == "KIND_AUTO" and gpus == 1
            each = [Placed("auto" if free else f"cuda:{gpu}", limits_on(resolved, gpu)) for gpu in resolved.gpus]
            placed += each * resolved.count
        else:
            device = "auto" if resolved.kind == "KIND_MODEL" else "cpu"
            placed += [Placed(device, limits_on(resolved, 0))] * resolved.count
    first = [next(each for each in placed if each.device == device) for device in dict.fromkeys(map(_device, placed))]
    rest = list(placed)
    for instance in first:
        rest.remove(instance)
    return [*first, *rest]


def limits_on(group: Group, device: int) -> Limits:
    """What an instance of a group needs that is on a device, which for all without a GPU is 0, as in Triton."""
    limiter = group.rate_limiter or GroupLimiter()
    counts = {(GLOBAL if each.is_global else device, each.name): each.count for each in limiter.resources}
    return Limits(tuple(Resource(*place, count) for place, count in counts.items()), max(limiter.priority, 1))


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


def shares_of(placed: Sequence[Placed], *, concurrent: bool) -> list[Share]:
    """What each process of a model does: where a process can compute several instances at once, one for each device.

    Args:
        concurrent: whether the runtime can.
    """
    if concurrent:
        devices = dict.fromkeys(map(_device, placed))
        return [Share(device, tuple(one.limits for one in placed if one.device == device)) for device in devices]
    return [Share(one.device, (one.limits,)) for one in placed]


def _device(placed: Placed) -> str:
    return placed.device


def gpus_here() -> int:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    try:
        return sum(_GPU_FILE.fullmatch(each.name) is not None for each in Path("/dev").iterdir())
    except OSError:
        return 0
