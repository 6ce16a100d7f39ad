"""Requests that wait: by priority, then in the order in which they came; those of one batch are of one kind."""

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
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
        level: of priority. number: in the order of waiting; one that is delayed gets another.
        delayed: whether it has waited too long. waits: whether it is in the queue.
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


class _Urgency(Generic[T]):
    """Those that are equally urgent, in a line for each kind; no line is empty. Nothing takes longer with many."""

    def __init__(self) -> None:
        self.lines: dict[Hashable, OrderedDict[int, Waiting[T]]] = {}
        self._heads: list[tuple[int, Hashable]] = []

    def add(self, waiting: Waiting[T]) -> None:
        line = self.lines.setdefault(waiting.kind, OrderedDict())
        if not line:
            heapq.heappush(self._heads, (waiting.number, waiting.kind))
        line[waiting.number] = waiting

    def remove(self, waiting: Waiting[T]) -> None:
        line = self.lines[waiting.kind]
        was_head = next(iter(line)) == waiting.number
        del line[waiting.number]
        if not line:
            del self.lines[waiting.kind]
        elif was_head:
            heapq.heappush(self._heads, (next(iter(line)), waiting.kind))

    def first(self) -> Waiting[T]:
        while True:
            number, kind = self._heads[0]
            line = self.lines.get(kind)
            if line is not None and next(iter(line)) == number:
                return line[number]
            heapq.heappop(self._heads)


class Queue(Generic[T]):
    """Bounded by the policy of each level of priority."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._numbers = itertools.count()
        # By level, and those that waited too long behind the others of their level.
        self._urgencies: dict[tuple[int, bool], _Urgency[T]] = {}
        self._counts: dict[int, int] = {}
        self._items: dict[Hashable, int] = {}
        self._items_of_level: dict[int, int] = {}
        self._length = 0
        self._timed: dict[int, Waiting[T]] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """Requests that wait."""
        return self._length

    def items_of(self, kind: Hashable) -> int:
        """Of the requests that could be computed together."""
        return self._items.get(kind, 0)

    def items_before(self, level: int) -> int:
        """Of the requests that are computed before one of a level that comes now."""
        return sum(items for other, items in self._items_of_level.items() if other <= level)

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
        self._length += 1
        self._counts[level] = self._counts.get(level, 0) + 1
        self._items[kind] = self._items.get(kind, 0) + items
        if deadline < math.inf:
            self._timed[waiting.number] = waiting
            heapq.heappush(self._deadlines, (deadline, waiting.number))
        return waiting

    def remove(self, waiting: Waiting[T]) -> bool:
        """Take a request out, wherever it stands. Returns whether it was there."""
        if not waiting.waits:
            return False
        self._extract(waiting)
        waiting.waits = False
        self._length -= 1
        self._counts[waiting.level] -= 1
        self._items[waiting.kind] -= waiting.items
        if not self._items[waiting.kind]:
            del self._items[waiting.kind]
        self._timed.pop(waiting.number, None)
        if len(self._deadlines) > 2 * len(self._timed) + 16:  # most of them are of requests that are gone
            self._deadlines = [(each.deadline, number) for number, each in self._timed.items()]
            heapq.heapify(self._deadlines)
        return True

    def expire(self, now: float) -> list[Waiting[T]]:
        """Take out those that waited too long, unless they are to be computed all the same, after the others."""
        expired = []
        while self.next_deadline <= now:
            _, number = heapq.heappop(self._deadlines)
            waiting = self._timed.pop(number)
            if self._batching.policy(waiting.level).delays:
                self._extract(waiting)
                waiting.delayed, waiting.number = True, next(self._numbers)
                self._insert(waiting)
            else:
                self.remove(waiting)
                expired.append(waiting)
        return expired

    @property
    def next_deadline(self) -> float:
        """When the next one will have waited too long; infinite if none will."""
        while self._deadlines and self._deadlines[0][1] not in self._timed:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def first(self) -> Waiting[T] | None:
        """The one whose turn it is."""
        return self._urgencies[min(self._urgencies)].first() if self._urgencies else None

    def of_kind(self, kind: Hashable) -> Iterator[Waiting[T]]:
        """Those of one kind, in their order."""
        for urgency in sorted(self._urgencies):
            yield from self._urgencies[urgency].lines.get(kind, {}).values()

    def _insert(self, waiting: Waiting[T]) -> None:
        self._urgencies.setdefault((waiting.level, waiting.delayed), _Urgency()).add(waiting)
        if not waiting.delayed:
            self._items_of_level[waiting.level] = self._items_of_level.get(waiting.level, 0) + waiting.items

    def _extract(self, waiting: Waiting[T]) -> None:
        place = (waiting.level, waiting.delayed)
        urgency = self._urgencies[place]
        urgency.remove(waiting)
        if not urgency.lines:
            del self._urgencies[place]
        if not waiting.delayed:
            self._items_of_level[waiting.level] -= waiting.items
