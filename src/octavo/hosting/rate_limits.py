"""Which instances of all models may compute at once, and which of them is next: Triton's rate limiter.

Nothing here waits, and nothing knows of processes.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from octavo.errors import ConfigError

GLOBAL = -1
"""In the place of a device, for resources that all devices share."""

Place = tuple[int, str]
"""A device, or `GLOBAL`, and the name of a resource there."""


class Resource(msgspec.Struct, frozen=True, array_like=True):
    """So many of something are needed. Attributes: device: where; `GLOBAL` for the one that all devices share."""

    device: int
    name: str
    count: int

    @property
    def place(self) -> Place:
        """Where they are taken from."""
        return self.device, self.name


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What an instance needs to compute a batch.

    Attributes:
        priority: one of priority 2 has half as many turns as one of priority 1, where both wait for the same.
    """

    resources: tuple[Resource, ...] = ()
    priority: int = 1


@dataclass(frozen=True, slots=True)
class Available:
    """How many of a resource there are, as `--rate-limit-resource` says. Attributes: device: None for each."""

    name: str
    count: int
    device: int | None = None


@dataclass(slots=True, eq=False)
class Instance:
    """An instance of a model.

    Attributes:
        passed: the turns that it has had, each counted as often as its priority says.
        order: of those that wait. waits, computes: which of both it does, if any.
    """

    model: str
    limits: Limits
    passed: int = 0
    order: tuple[int, int] = (0, 0)
    waits: bool = False
    computes: bool = False


class RateLimiter:
    """Gives out resources.

    Args:
        available: how many there are; none for as many as the instance that needs the most of each. Where some are
            given, there are none of any other.
    """

    def __init__(self, available: Sequence[Available] = ()) -> None:
        self._available = available
        self._instances: dict[Instance, None] = {}
        self._most: dict[Place, int] = {}
        self._taken: dict[Place, int] = {}
        self._waiting: list[Instance] = []
        self._numbers = itertools.count()
        self._now = 0  # what the last one that had a turn had passed before

    # --- who there is -------------------------------------------------------------------------------------------------

    def check(self, model: str, limits: Sequence[Limits]) -> None:
        """See that instances could ever compute.

        Raises:
            ConfigError: one needs more than there is; or something of all devices that another one has of each.
        """
        # Of the model itself there may be a predecessor yet, which says something else.
        known = [(each.model, each.limits) for each in self._instances if each.model != model]
        everybody = [
            (name, each) for name, one in (*known, *((model, one) for one in limits)) for each in one.resources
        ]
        for one in limits:
            for each in one.resources:
                for name, other in everybody:
                    if other.name == each.name and (other.device == GLOBAL) is not (each.device == GLOBAL):
                        both = sorted([(each.device == GLOBAL, model), (other.device == GLOBAL, name)])
                        raise ConfigError(
                            f'Resource "{each.name}" is present as both global and device-specific resource in the '
                            f"model configuration: {both[1][1]} has it as the former, {both[0][1]} as the latter"
                        )
                there = self._given(each.place)
                if there is not None and there < each.count:
                    device = "" if each.device == GLOBAL else f" on device {each.device}"
                    raise ConfigError(
                        f'Resource count for "{each.name}" is limited to {there} which will prevent scheduling of one '
                        f"or more model instances, the minimum required count is {each.count}{device}: "
                        f"--rate-limit-resource {each.name}:{each.count} makes it so"
                    )

    def _given(self, place: Place) -> int | None:
        """How many there are as the command line has it; None if it says nothing of any."""
        if not self._available:
            return None
        device, name = place
        return max(
            (
                each.count
                for each in self._available
                if each.name == name and (device == GLOBAL or each.device in (None, device))
            ),
            default=0,
        )

    def add(self, instance: Instance) -> None:
        """There is an instance, which was checked."""
        self._instances[instance] = None
        self._count()

    def remove(self, instance: Instance) -> None:
        """There is one no more. What it has is free."""
        if instance.computes:
            self._give_back(instance)
        if instance.waits:
            self._waiting.remove(instance)
        del self._instances[instance]
        self._count()

    def _count(self) -> None:
        self._most.clear()
        for instance in self._instances:
            for each in instance.limits.resources:
                self._most[each.place] = max(self._most.get(each.place, 0), each.count)

    # --- turns --------------------------------------------------------------------------------------------------------

    def want(self, instances: Sequence[Instance]) -> Instance:
        """One of some instances, none of which waits or computes, is to compute a batch. Returns which."""
        chosen = min(instances, key=lambda each: each.passed)
        # One that had nothing to compute, or was not there, gains nothing by that: or else it would have every turn
        # until it has had as many as the others.
        chosen.passed = max(chosen.passed, self._now)
        chosen.order, chosen.waits = (chosen.passed, next(self._numbers)), True
        bisect.insort(self._waiting, chosen, key=lambda each: each.order)
        return chosen

    def lacks(self, instance: Instance, holders: Sequence[Instance]) -> str:
        """What an instance will not have as long as some others compute, and why; empty if it may."""
        for each in instance.limits.resources:
            held = sum(
                other.count
                for holder in holders
                if holder.computes
                for other in holder.limits.resources
                if other.place == each.place
            )
            there = self._there(each.place)
            if there - held < each.count:
                return (
                    f'it needs {each.count} of the resource "{each.name}", of which there are {there}, and {held} are '
                    f"with models that wait for it; --rate-limit-resource {each.name}:{held + each.count} would do"
                )
        return ""

    def release(self, instance: Instance, *, used: bool = True) -> None:
        """An instance has computed its batch, or `used` its turn for nothing."""
        self._give_back(instance)
        if not used:
            instance.passed -= max(instance.limits.priority, 1)

    def _give_back(self, instance: Instance) -> None:
        instance.computes = False
        for each in instance.limits.resources:
            self._taken[each.place] -= each.count

    def next(self) -> Instance | None:
        """The next one that may compute now, and does from now on; None if nobody may.

        Whoever waits has what is free of its resources kept for it: nobody behind it takes them, however long it waits
        for the rest.
        """
        kept: dict[Place, int] = {}
        for instance in self._waiting:
            resources = instance.limits.resources
            if all(self._free(each.place) - kept.get(each.place, 0) >= each.count for each in resources):
                self._waiting.remove(instance)
                self._begin(instance)
                return instance
            for each in resources:
                kept[each.place] = kept.get(each.place, 0) + each.count
        return None

    def _begin(self, instance: Instance) -> None:
        instance.waits, instance.computes = False, True
        self._now = instance.passed
        instance.passed += max(instance.limits.priority, 1)
        for each in instance.limits.resources:
            self._taken[each.place] = self._taken.get(each.place, 0) + each.count

    def _free(self, place: Place) -> int:
        return self._there(place) - self._taken.get(place, 0)

    def _there(self, place: Place) -> int:
        given = self._given(place)
        return self._most[place] if given is None else given
