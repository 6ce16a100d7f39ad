"""Other numbers of instances for a model of a repository that is loaded, and goes on as it is."""

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.hosting.info import HostedInfo
from octavo.hosting.start import HostingStart
from octavo.hosting.triton.description import Description
from octavo.hosting.triton.normal_form import normal_form
from octavo.hosting.triton.placement import gpus_here, placed_instances, shares_of

GROUPS = "instance_group"

Resize = Callable[[HostingStart], tuple[HostedInfo, int]]
"""What a model is with other settings, and how many instances of it a process has then."""


def resizer(info: HostedInfo, config: dict[str, Any]) -> Resize:
    """What changes the number of instances of a model.

    Args:
        info: what it is now. config: its `ModelConfig` with what it says itself.
    """
    per_instance = info.at_once // info.instances

    def resize(start: HostingStart) -> tuple[HostedInfo, int]:
        assert start.config.repository is not None
        gpus = gpus_here()
        written: dict[str, Any] = msgspec.json.decode(start.config.repository.config)
        resized = {**config, GROUPS: written.get(GROUPS, [])}
        placed = placed_instances(Description.of(resized), gpus=gpus)
        shares = shares_of(placed, concurrent=info.concurrent)
        changed = msgspec.structs.replace(
            info,
            instances=len(placed),
            at_once=len(placed) * per_instance,
            processes=len(shares),
            numbers=start.numbers,
            earlier=start.earlier,
            config=normal_form(resized, gpus=gpus),
        )
        return changed, len(shares[start.place].instances)

    return resize


def processes_after(before: str, after: str, *, concurrent: bool) -> int | None:
    """How many processes a model has with other instance groups; None if it has to be loaded again for that.

    Args:
        before, after: its `ModelConfig` as JSON, as its folder says it.
        concurrent: whether one process computes all instances on a device.
    """
    then, now = (msgspec.json.decode(each, type=dict[str, Any]) for each in (before, after))
    if {**then, GROUPS: None} != {**now, GROUPS: None}:
        return None
    gpus = gpus_here()
    old, new = (placed_instances(Description.of(each), gpus=gpus) for each in (then, now))
    if any(each.limits.resources for each in (*old, *new)):  # the rate limiter knows the instances
        return None
    devices = [list(dict.fromkeys(each.device for each in placed)) for placed in (old, new)]
    # One process for each device, or any number of them for one.
    same = devices[0] == devices[1] if concurrent else len({*devices[0], *devices[1]}) == 1
    return len(shares_of(new, concurrent=concurrent)) if same else None
