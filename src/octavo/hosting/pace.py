"""What batches cost, as it is measured, and when it pays to wait for more requests."""

import itertools
import math
from collections import deque

_SAMPLES = 50
_REFIT_SECONDS = 10e-3
"""Of batches from one fit to the next, which takes a hundredth of it, once there are samples enough."""

_OUTLIER = 4.0
_SLOTS = 16
_KEPT = 0.97
"""Of what is known, with every event."""

_LEAST = 1e-3
"""Seconds. Batches that cost less are not worth a wait."""

_MARGIN = 1.25
"""What is saved is to be more than what is lost by so much: both are only estimated."""


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


class Followers:
    """How many requests follow an event, and how soon: clients that were answered ask again, and what belongs together
    comes together. From that, for how long it pays to wait for more while an instance is free to compute.

    Who comes in time is answered with the batch that waits, instead of after it, and saves what a batch costs, b, less
    the wait. So do those that are there, as far as nobody is left over then: one who is, is computed while they come
    back, and they find him in their way. Lost is the wait, by those that are there and by those that come later still.
    What follows is learnt from every event, whether anybody waited for it or not.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        # Items of events, and of what followed within b, by sixteenths of it. What is long ago counts less.
        self._led = 0.0
        self._followed = [0.0] * _SLOTS
        # The last event, the b of its time, and what has followed so far.
        self._began, self._span = -math.inf, 0.0
        self._items = self._came = 0
        self._coming = [0] * _SLOTS

    @property
    def ends(self) -> float:
        """When nothing that comes is a consequence of the last event any more."""
        return self._began + self._span

    def begin(self, items: int, now: float) -> None:
        """There is an event: so many were answered, or came after a pause."""
        if self._items:
            self._led = _KEPT * self._led + self._items
            self._followed = [_KEPT * old + new for old, new in zip(self._followed, self._coming, strict=True)]
            self._coming = [0] * _SLOTS
        self._began, self._items, self._span, self._came = now, items, self._cost.per_batch, 0
        if self._span < _LEAST:
            self._items, self._span = 0, 0.0

    def note(self, items: int, now: float) -> None:
        """So many came."""
        if self._began <= now < self.ends:
            self._came += items
            self._coming[self._slot(now)] += items

    def until(self, items: int, room: int, now: float) -> float:
        """For how long a batch is to wait which has so many items, and room for more; minus infinity if it is not."""
        if not self._began <= now < self.ends or not self._led:
            return -math.inf
        first, width = self._slot(now), self._span / _SLOTS
        later = sum(self._followed[first:])
        expected = sum(self._followed) * self._items / self._led - self._came
        if expected <= 0.0 or not later:
            return -math.inf
        come = best = 0.0
        until = -math.inf
        for slot in range(first, _SLOTS):
            come += expected * self._followed[slot] / later
            left = expected - come
            waited = self._began + (slot + 1) * width - now
            # How much likelier nobody is left over than without a wait.
            whole = 0.0 if expected > room else max(1.0 - left, 0.0) - max(1.0 - expected, 0.0)
            saved = (min(come, room) + items * whole) * (self._span - waited)
            if (gain := saved - _MARGIN * (items + left) * waited) > best:
                best, until = gain, now + waited + width  # it takes a moment until a request that has come is here
        return until

    def _slot(self, now: float) -> int:
        return min(int((now - self._began) / self._span * _SLOTS), _SLOTS - 1)
