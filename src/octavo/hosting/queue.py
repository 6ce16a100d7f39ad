"""Requests that wait: by priority, then in the order in which they came; those of one batch are of one kind."""

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
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


class _Kind(Generic[T]):
    """Those that may be computed together, in a line for each urgency: a level, and whether they are delayed."""

    __slots__ = ("items", "lines")

    def __init__(self) -> None:
        self.items = 0
        self.lines: dict[tuple[int, bool], OrderedDict[int, Waiting[T]]] = {}


class _Level:
    """How many wait of a level, and the items of those that are not delayed."""

    __slots__ = ("items", "requests")

    def __init__(self) -> None:
        self.items = self.requests = 0


class Queue(Generic[T]):
    """Bounded by the policy of each level of priority. Nothing takes longer with many.

    Attributes:
        requests: that wait.
    """

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._numbers = itertools.count()
        self._kinds: dict[Hashable, _Kind[T]] = {}
        # One for each line: where its first one stands, or stood. Lines that have become empty go when they are met.
        self._heads: list[tuple[tuple[int, bool], int, Hashable]] = []
        self._levels: dict[int, _Level] = {}
        self.requests = 0
        self._timed: dict[int, Waiting[T]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._default_level = batching.level(0)

    def rebind(self, batching: Batching) -> None:
        """Other bounds hold from now on."""
        self._batching = batching

    def items_of(self, kind: Hashable) -> int:
        """Of the requests that could be computed together."""
        found = self._kinds.get(kind)
        return 0 if found is None else found.items

    def items_before(self, level: int) -> int:
        """Of the requests that are computed before one of a level that comes now."""
        return sum(there.items for other, there in self._levels.items() if other <= level)

    def push(
        self, request: T, *, items: int = 1, kind: Hashable = None, now: float, priority: int = 0, timeout: float = 0.0
    ) -> Waiting[T]:
        """Add a request.

        Args:
            timeout: seconds that it may wait, if its policy lets it say so; 0 for ever.

        Raises:
            InferenceError: too many wait.
        """
        number = self._batching.level(priority) if priority else self._default_level
        policy, level = self._batching.policy(number), self._level(number)
        if policy.max_queue_size and level.requests >= policy.max_queue_size:
            raise InferenceError(
                f"Exceeds maximum queue size: {policy.max_queue_size} requests wait already", Code.UNAVAILABLE
            )
        seconds = policy.timeout(timeout) if timeout else policy.default_timeout
        deadline = now + seconds if seconds else math.inf
        waiting = Waiting(request, items, kind, now, deadline, number, next(self._numbers))
        self._insert(waiting)
        self.requests += 1
        level.requests += 1
        if seconds:
            self._timed[waiting.number] = waiting
            heapq.heappush(self._deadlines, (deadline, waiting.number))
        return waiting

    def remove(self, waiting: Waiting[T]) -> bool:
        """Take a request out, wherever it stands. Returns whether it was there."""
        if not waiting.waits:
            return False
        self._extract(waiting)
        waiting.waits = False
        self.requests -= 1
        self._levels[waiting.level].requests -= 1
        if self._timed.pop(waiting.number, None) and len(self._deadlines) > 2 * len(self._timed) + 16:
            # Most of them are of requests that are gone.
            self._deadlines = [(each.deadline, number) for number, each in self._timed.items()]
            heapq.heapify(self._deadlines)
        return True

    def take(self, taken: Sequence[Waiting[T]]) -> None:
        """Take out requests of one kind, which are there."""
        if self._timed:
            for waiting in taken:
                self.remove(waiting)
            return
        kind, levels = self._kinds[taken[0].kind], self._levels
        lines = kind.lines
        for waiting in taken:
            del lines[waiting.level, waiting.delayed][waiting.number]
            waiting.waits = False
            kind.items -= waiting.items
            level = levels[waiting.level]
            level.requests -= 1
            if not waiting.delayed:
                level.items -= waiting.items
        self.requests -= len(taken)

    def expire(self, now: float) -> list[Waiting[T]]:
        """Take out those that waited too long, unless they are to be computed all the same, after the others."""
        expired: list[Waiting[T]] = []
        while self._deadlines and self.next_deadline <= now:
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
        heads = self._heads
        while self.requests:
            urgency, number, name = heads[0]
            kind = self._kinds[name]
            line = kind.lines[urgency]
            head = next(iter(line), None)
            if head == number:
                return line[number]
            if head is not None:
                heapq.heapreplace(heads, (urgency, head, name))
                continue
            heapq.heappop(heads)
            del kind.lines[urgency]
            if not kind.lines:
                del self._kinds[name]
        return None

    def of_kind(self, kind: Hashable) -> Iterator[Waiting[T]]:
        """Those of one kind, in their order."""
        found = self._kinds.get(kind)
        if found is not None:
            for urgency in sorted(found.lines):
                yield from found.lines[urgency].values()

    def _level(self, number: int) -> _Level:
        found = self._levels.get(number)
        if found is None:
            found = self._levels[number] = _Level()
        return found

    def _insert(self, waiting: Waiting[T]) -> None:
        kind = self._kinds.get(waiting.kind)
        if kind is None:
            kind = self._kinds[waiting.kind] = _Kind()
        urgency = (waiting.level, waiting.delayed)
        line = kind.lines.get(urgency)
        if line is None:
            line = kind.lines[urgency] = OrderedDict()
            heapq.heappush(self._heads, (urgency, waiting.number, waiting.kind))
        line[waiting.number] = waiting
        kind.items += waiting.items
        if not waiting.delayed:
            self._levels[waiting.level].items += waiting.items

    def _extract(self, waiting: Waiting[T]) -> None:
        kind = self._kinds[waiting.kind]
        del kind.lines[waiting.level, waiting.delayed][waiting.number]
        kind.items -= waiting.items
        if not waiting.delayed:
            self._levels[waiting.level].items -= waiting.items
