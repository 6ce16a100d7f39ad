"""What a frontend has asked of a worker and not got yet; and who is to blame when the worker dies.

A request that kills its worker must be found, and it alone must pay. Deaths are counted per request: a death is blamed
on those that had been in that incarnation of the worker for less than a probation, or on all if there were none such.
Blamed for a second death within the window, a request is a suspect. Suspects go into the next incarnation in small
groups, those blamed most often first, and nothing else does; a group that outlives the probation stays, and the next
one follows. So the group that is blamed shrinks, until one request was alone in the worker when it died: the culprit.
If those that were blamed most often had outlived the probation when the worker died, that was too short for this
culprit and becomes longer.

Every frontend looks among its own requests.
"""

import math
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

SUSPECT_DEATHS = 2
"""Blamed for so many deaths a request is a suspect."""

MAX_DEATHS = 3
"""A request that was alone in the worker at the last of so many deaths is the culprit."""

WINDOW_SECONDS = 300.0
"""For so long a death counts."""

PROBATION_STEPS = 16
"""Steps that a request must get something from to count as harmless, at first."""

LONGER_PROBATION = 4

GROUPS = 16
"""Into so many groups suspects are divided."""


class Entry:
    """A request in a ledger.

    Attributes:
        in_worker: whether the worker of now was sent it.
        steps: of the worker of now that brought something for it.
        deaths: when those deaths were for which it was to blame, the last `WINDOW_SECONDS`.
    """

    def __init__(self) -> None:
        self.in_worker = False
        self.steps = 0
        self.deaths: list[float] = []

    @property
    def is_suspect(self) -> bool:
        """Whether it must prove itself before others are let in."""
        return len(self.deaths) >= SUSPECT_DEATHS


E = TypeVar("E", bound=Entry)


class Ledger(Generic[E]):
    """Requests by their id, in the order of their arrival."""

    def __init__(self) -> None:
        self._entries: dict[str, E] = {}
        self._outside: dict[str, E] = {}
        self._on_trial: dict[str, E] = {}
        self._probation = PROBATION_STEPS
        self._last_death = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._entries.values()))

    def get(self, key: str) -> E | None:
        """The request of that id, if it has not ended."""
        return self._entries.get(key)

    def outside(self) -> Iterator[E]:
        """Requests that the worker was not sent."""
        return iter(self._outside.values())

    def add(self, key: str, entry: E) -> None:
        """Take a request in."""
        self._entries[key] = self._outside[key] = entry

    def remove(self, key: str) -> None:
        """A request has ended."""
        self._entries.pop(key, None)
        self._outside.pop(key, None)
        self._on_trial.pop(key, None)

    @property
    def takes_all(self) -> bool:
        """Whether the worker may be sent whatever is added now."""
        return not self._on_trial

    @property
    def has_due(self) -> bool:
        """Whether `take` would return any."""
        return bool(self._outside) and not self._on_trial

    def take(self) -> list[E]:
        """The requests that the worker is to be sent now; they count as being in it from now on."""
        if not self.has_due:
            return []
        chosen = self._next_suspects()
        self._on_trial = dict(chosen)
        if not chosen:
            chosen = dict(self._outside)
        for key, entry in chosen.items():
            del self._outside[key]
            entry.in_worker, entry.steps = True, 0
        return list(chosen.values())

    def _next_suspects(self) -> dict[str, E]:
        """A share of those suspects that are blamed for the most deaths."""
        suspects = {key: entry for key, entry in self._outside.items() if entry.is_suspect}
        most = max((len(entry.deaths) for entry in suspects.values()), default=0)
        worst = [key for key, entry in suspects.items() if len(entry.deaths) == most]
        return {key: suspects[key] for key in worst[: max(len(worst) // GROUPS, 1)]}

    def note_step(self, key: str, entry: E) -> None:
        """The worker has brought something for a request."""
        entry.steps += 1
        if entry.steps == self._probation:
            self._on_trial.pop(key, None)

    def recall(self) -> None:
        """The worker holds nothing any more, though it lives."""
        self._on_trial.clear()
        self._outside = dict(self._entries)
        for entry in self._entries.values():
            entry.in_worker = False

    def note_death(self) -> E | None:
        """The worker died. Returns the culprit if there is no doubt about it; all others are cleared then."""
        now = time.monotonic()
        if now - self._last_death > WINDOW_SECONDS:
            self._probation = PROBATION_STEPS
        self._last_death = now
        inside = [entry for entry in self._entries.values() if entry.in_worker]
        blamed = [entry for entry in inside if entry.steps < self._probation] or inside
        if self._worst_are_cleared(inside):
            self._probation *= LONGER_PROBATION
        self.recall()
        for entry in self._entries.values():
            entry.deaths = [death for death in entry.deaths if now - death < WINDOW_SECONDS]
        for entry in blamed:
            entry.deaths.append(now)
        if len(inside) != 1 or len(inside[0].deaths) < MAX_DEATHS:
            return None
        [culprit] = inside
        self._probation = PROBATION_STEPS
        for entry in self._entries.values():
            if entry is not culprit:
                entry.deaths.clear()
        return culprit

    def _worst_are_cleared(self, inside: list[E]) -> bool:
        """Whether there were suspects in the worker, and those blamed most often had outlived the probation."""
        most = max((len(entry.deaths) for entry in inside if entry.is_suspect), default=0)
        worst = [entry for entry in inside if len(entry.deaths) == most]
        return most > 0 and all(entry.steps >= self._probation for entry in worst)
