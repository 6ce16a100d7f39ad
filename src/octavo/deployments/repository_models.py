"""What is known of the models of repositories while a server runs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.deployments.control import Entry
from octavo.hosting.triton.planning import PlannedModel


@dataclass(slots=True)
class ModelState:
    """A model that is or was to be served.

    Attributes:
        changing: held by whoever changes it.
        stamps: of its files, as they were when what is served was read; none if that has a configuration or files of
            somebody's own. read: the same, whatever that has. seen: when they were read last, whatever came of it.
        steps: the models that it asks. wanted: whether somebody named it, and not an ensemble alone.
        entries: its versions that are offered. trouble: of each version that is not, its state and the reason.
        folder: with files that clients have sent, if it was loaded from there.
    """

    name: str
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    stamps: Mapping[str, int] = field(default_factory=dict)
    read: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    wanted: bool = False
    entries: dict[int, Entry] = field(default_factory=dict)
    trouble: dict[str, tuple[str, str]] = field(default_factory=dict)
    folder: str | None = None


LOADING = {"": ("LOADING", "")}
"""Of a model of which nobody knows yet what versions it has."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder has. Attributes: planned: what is to be served of it; None if that is so already."""

    stamps: Mapping[str, int]
    planned: PlannedModel | None


class Round:
    """Models that are loaded side by side, each once. Attributes: waits: the step that an ensemble waits for."""

    def __init__(self) -> None:
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.waits: dict[str, str] = {}

    def leads(self, name: str, to: str) -> bool:
        """Whether a model is another one, or waits for it, however far away."""
        while name != to and name in self.waits:
            name = self.waits[name]
        return name == to
