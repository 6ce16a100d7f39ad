"""What batches cost, as it is measured, and when it pays to wait for one more request."""

import itertools
import math
from collections import deque

_SAMPLES = 50
_REFIT_SECONDS = 10e-3
"""Of batches from one fit to the next, which takes a hundredth of it, once there are samples enough."""

_OUTLIER = 4.0
_WEIGHT = 0.15
"""Of the newest wait among those before it."""

_MARGIN = 1.5
"""What is saved is to be more than what is lost by so much: both are only estimated."""

_SPREAD = 8.0
"""A request that is awaited has this many times the usual time."""


class Cost:
    """Seconds of a batch of n items: a · n + b, fitted to the last batches by least squares."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=_SAMPLES)
        self._unfitted = 0.0
        self.per_item = self.per_batch = 0.0

    def note(self, items: int, seconds: float) -> bool:
        """A batch took so long. Returns whether that was made use of now."""
        self._unfitted += seconds
        if self._unfitted < _REFIT_SECONDS and len(self._samples) == _SAMPLES:
            self._samples.append((items, seconds))
            return False
        self._samples.append((items, seconds))
        self._unfitted = 0.0
        self._fit(self._usual())
        return True

    def _usual(self) -> list[tuple[int, float]]:
        """The samples without those that took many times what as many items, or more, took once: the first batch of a
        model that compiles something, or one beside which the machine was busy."""
        usual: list[tuple[int, float]] = []
        least = math.inf
        for items, group in itertools.groupby(sorted(self._samples, reverse=True), key=lambda sample: sample[0]):
            times = [seconds for _, seconds in group]
            least = min(least, *times)
            usual += [(items, seconds) for seconds in times if seconds <= _OUTLIER * least]
        return usual

    def _fit(self, samples: list[tuple[int, float]]) -> None:
        count = len(samples)
        mean_items = sum(items for items, _ in samples) / count
        mean_seconds = sum(seconds for _, seconds in samples) / count
        spread = sum((items - mean_items) ** 2 for items, _ in samples)
        if spread:
            slope = sum((items - mean_items) * (seconds - mean_seconds) for items, seconds in samples) / spread
            self.per_item = min(max(slope, 0.0), mean_seconds / mean_items)
        else:  # of one size: nothing tells them apart
            self.per_item = 0.0
        self.per_batch = mean_seconds - self.per_item * mean_items

    def of(self, items: int) -> float:
        """Seconds that a batch takes; 0 while nothing is known."""
        return self.per_item * items + self.per_batch


class _Experience:
    """With so many items there: how often somebody came soon enough, and after how long."""

    __slots__ = ("hope", "usual")

    def __init__(self) -> None:
        self.hope = self.usual = 0.0


class Patience:
    """How long a batch waits for one more request, while an instance is free to compute it.

    One that comes in time saves the fixed cost of a batch, b; the n items that are there lose the time it takes to
    come, each. So the next one may take b / n, and less once it is known how soon those that come do. Whether any
    comes is learnt for each n, from batches that waited and from those that did not: clients that wait for their
    answers come back together, and when all are there nobody else is to be awaited.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._experiences: dict[int, _Experience] = {}

    def window(self, items: int) -> float:
        """Seconds to wait for the next request, with so many items there."""
        experience, saved = self._of(items), self._cost.per_batch
        longest = saved / items
        if experience.usual:
            longest = min(longest, _SPREAD * experience.usual)
        usual = min(experience.usual or longest / 2, longest)
        hope = experience.hope
        return longest if hope * saved > _MARGIN * items * (hope * usual + (1.0 - hope) * longest) else 0.0

    def note(self, items: int, seconds: float, *, came: bool) -> None:
        """With so many items there, the next request came after so long; or did not come for so long."""
        came = came and seconds * items <= self._cost.per_batch
        experience = self._of(items)
        experience.hope += _WEIGHT * (came - experience.hope)
        if came:
            experience.usual += (_WEIGHT if experience.usual else 1.0) * (seconds - experience.usual)

    def _of(self, items: int) -> _Experience:
        return self._experiences.setdefault(items, _Experience())
