"""What batches cost, as it is measured, and when it pays to wait for more requests."""

import itertools
import math
from collections import deque

_SAMPLES = 50
_REFIT_SECONDS = 50e-3
"""Of batches from one fit to the next, which takes a few thousandths of it, once there are samples enough."""

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


class _Event:
    """So many items were answered, or came after a pause; and what has followed since, by sixteenths of b."""

    __slots__ = ("began", "came", "coming", "items", "span", "usual")

    def __init__(self, usual: "_Usual", items: int, began: float, span: float) -> None:
        self.usual, self.items, self.began, self.span = usual, items, began, span
        self.coming = [0] * _SLOTS
        self.came = 0

    @property
    def ends(self) -> float:
        """When nothing that comes is a consequence any more."""
        return self.began + self.span

    def slot(self, now: float) -> int:
        """Of b that a time is in."""
        return min(int((now - self.began) / self.span * _SLOTS), _SLOTS - 1)


class _Usual:
    """Items of events of one sort, and of what followed them. What is long ago counts less."""

    __slots__ = ("followed", "led")

    def __init__(self) -> None:
        self.led = 0.0
        self.followed = [0.0] * _SLOTS

    def add(self, event: _Event) -> None:
        """An event that has ended."""
        self.led = _KEPT * self.led + event.items
        self.followed = [_KEPT * old + new for old, new in zip(self.followed, event.coming, strict=True)]


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
        self._after_answers, self._after_pauses = _Usual(), _Usual()
        self._last = self._before = _Event(self._after_answers, 0, -math.inf, 0.0)

    def answered(self, items: int, now: float) -> None:
        """A batch was."""
        self._begin(self._after_answers, items, now)

    def came(self, items: int, now: float, *, idle: bool) -> None:
        """A request has come: perhaps before the last batch was answered, and is only seen now.

        Args:
            idle: whether nothing else waits or is computed.
        """
        event = self._last
        if now < event.began:
            event = self._before
        if event.began <= now < event.ends:
            event.came += items
            event.coming[event.slot(now)] += items
        elif idle and now >= self._last.ends:
            self._begin(self._after_pauses, items, now)

    def until(self, items: int, room: int, now: float) -> float:
        """For how long a batch is to wait which has so many items, and room for more; minus infinity if it is not."""
        event, usual = self._last, self._last.usual
        if not event.began <= now < event.ends or not usual.led:
            return -math.inf
        first, width = event.slot(now), event.span / _SLOTS
        later = sum(usual.followed[first:])
        expected = sum(usual.followed) * event.items / usual.led - event.came
        if expected <= 0.0 or not later:
            return -math.inf
        come = best = 0.0
        until = -math.inf
        for slot in range(first, _SLOTS):
            come += expected * usual.followed[slot] / later
            left = expected - come
            waited = event.began + (slot + 1) * width - now
            # How much likelier nobody is left over than without a wait.
            whole = 0.0 if expected > room else max(1.0 - left, 0.0) - max(1.0 - expected, 0.0)
            saved = (min(come, room) + items * whole) * (event.span - waited)
            if (gain := saved - _MARGIN * (items + left) * waited) > best:
                best, until = gain, now + waited + width  # it takes a moment until a request that has come is here
        return until

    def _begin(self, usual: _Usual, items: int, now: float) -> None:
        span = self._cost.per_batch
        if span < _LEAST:
            return
        if self._before.items:
            self._before.usual.add(self._before)
        self._before, self._last = self._last, _Event(usual, items, now, span)
