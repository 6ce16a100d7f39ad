"""Requests that wait: by priority, then in the order in which they came; those of one batch are of one kind."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """A request in the queue.

    Attributes:
        request: whatever is to be computed. items: it counts for so many in a batch.
        kind: requests of other kinds are not computed with it: those whose tensors have other sizes.
        arrived, deadline: on the clock of whoever calls; a deadline is infinite if it may wait for ever.
        level: of priority. number: in the order of arrival. delayed: whether it has waited too long.
        waits: whether it is in the queue.
    """

    request: T
    items: int
    kind: Hashable
    arrived: float
    deadline: float
    level: int
    number: int
    delayed: bool = False
    waits: bool = True


@dataclass(slots=True)
class _Lines(Generic[T]):
    """Those of one urgency, by kind; no line is empty."""

    lines: dict[Hashable, deque[Waiting[T]]] = field(default_factory=dict)

    def first(self) -> Waiting[T] | None:
        return min((line[0] for line in self.lines.values()), key=lambda waiting: waiting.number, default=None)


class Queue(Generic[T]):
    """Bounded by the policy of each level of priority."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._numbers = itertools.count()
        # By level, and those that waited too long behind the others of their level.
        self._urgencies: dict[tuple[int, bool], _Lines[T]] = {}
        self._counts: dict[int, int] = {}
        self._items: dict[Hashable, int] = {}
        self._deadlines: list[tuple[float, int, Waiting[T]]] = []

    def __len__(self) -> int:
        """Requests that wait."""
        return sum(self._counts.values())

    @property
    def items(self) -> int:
        """Of all requests that wait."""
        return sum(self._items.values())

    def items_of(self, kind: Hashable) -> int:
        """Of the requests that could be computed together."""
        return self._items.get(kind, 0)

    def push(
        self, request: T, *, items: int = 1, kind: Hashable = None, now: float, priority: int = 0, timeout: float = 0.0
    ) -> Waiting[T]:
        """Add a request.

        Args:
            timeout: seconds that it may wait, if its policy lets it say so; 0 for ever.

        Raises:
            InferenceError: too many wait.
        """
        level = self._batching.level(priority)
        policy = self._batching.policy(level)
        if policy.max_queue_size and self._counts.get(level, 0) >= policy.max_queue_size:
            raise InferenceError(
                f"Exceeds maximum queue size: {policy.max_queue_size} requests wait already", Code.UNAVAILABLE
            )
        seconds = policy.timeout(timeout)
        deadline = now + seconds if seconds else math.inf
        waiting = Waiting(request, items, kind, now, deadline, level, next(self._numbers))
        self._insert(waiting)
        self._counts[level] = self._counts.get(level, 0) + 1
        self._items[kind] = self._items.get(kind, 0) + items
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, waiting.number, waiting))
        return waiting

    def remove(self, waiting: Waiting[T]) -> bool:
        """Take a request out, wherever it stands. Returns whether it was there."""
        if not waiting.waits:
            return False
        self._extract(waiting)
        waiting.waits = False
        self._counts[waiting.level] -= 1
        self._items[waiting.kind] -= waiting.items
        if not self._items[waiting.kind]:
            del self._items[waiting.kind]
        return True

    def expire(self, now: float) -> list[Waiting[T]]:
        """Take out those that waited too long, unless they are to be computed all the same, after the others."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, waiting = heapq.heappop(self._deadlines)
            if not waiting.waits:
                continue
            if self._batching.policy(waiting.level).delays:
                self._extract(waiting)
                waiting.delayed = True
                self._insert(waiting)
            else:
                self.remove(waiting)
                expired.append(waiting)
        return expired

    @property
    def next_deadline(self) -> float:
        """When the next one will have waited too long; infinite if none will."""
        while self._deadlines and not self._deadlines[0][2].waits:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def first(self) -> Waiting[T] | None:
        """The one whose turn it is."""
        for urgency in sorted(self._urgencies):
            return self._urgencies[urgency].first()
        return None

    def of_kind(self, kind: Hashable) -> Iterator[Waiting[T]]:
        """Those of one kind, in their order."""
        for urgency in sorted(self._urgencies):
            yield from self._urgencies[urgency].lines.get(kind, ())

    def _insert(self, waiting: Waiting[T]) -> None:
        lines = self._urgencies.setdefault((waiting.level, waiting.delayed), _Lines()).lines
        lines.setdefault(waiting.kind, deque()).append(waiting)

    def _extract(self, waiting: Waiting[T]) -> None:
        urgency = (waiting.level, waiting.delayed)
        lines = self._urgencies[urgency].lines
        line = lines[waiting.kind]
        if line[0] is waiting:
            line.popleft()
        else:
            line.remove(waiting)
        if not line:
            del lines[waiting.kind]
        if not lines:
            del self._urgencies[urgency]
