"""An instance that computes sequences: which of them have its slots, and which of their requests make a batch."""

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Optional, TypeVar

from octavo.hosting.batcher import Batch
from octavo.hosting.queue import Waiting
from octavo.hosting.sequencing import Sequencing

T = TypeVar("T")

SequenceId = int | str
"""What a client calls a sequence; 0 and "" stand for none."""


@dataclass(slots=True, eq=False)
class Turn(Waiting[T]):
    """A request of a sequence. Attributes: flags: `SEQUENCE_START` and `SEQUENCE_END`."""

    flags: int = 0
    of: Optional["Course[T]"] = None


@dataclass(slots=True, eq=False)
class Course(Generic[T]):
    """A sequence, from its first request to its last.

    Attributes:
        turns: requests that wait. deadline: when it has waited too long for a slot.
        lane, slot: where it is computed; None while it waits for that. busy: whether a request is being computed.
        ended: whether no more requests are taken for it. next: a sequence of the same name that begins behind it.
        idle_since: when it had its last request, or that was computed.
        state: what the model has said of it that it wants to be told with the next request.
    """

    id: SequenceId
    turns: deque[Turn[T]] = field(default_factory=deque)
    deadline: float = math.inf
    lane: Optional["Lane[T]"] = None
    slot: int = 0
    busy: bool = False
    ended: bool = False
    next: Optional["Course[T]"] = None
    idle_since: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def public_id(self) -> SequenceId:
        """What its model knows it by: those that have no name are numbered."""
        return abs(self.id) if isinstance(self.id, int) else self.id


@dataclass(slots=True)
class SequenceBatch(Batch[T]):
    """Requests of different sequences of one instance.

    Attributes:
        courses: their sequences. turns: the requests.
        places: of each of them in the batch, rising. Where they leave some out, nothing is to be computed that counts.
    """

    lane: "Lane[T]"
    courses: list[Course[T]]
    places: list[int]
    turns: list[Turn[T]]


class Lane(ABC, Generic[T]):
    """The slots of one instance.

    Attributes:
        busy: whether it computes. leaving: whether it takes no more sequences, and is gone when it has none.
    """

    def __init__(self, sequencing: Sequencing) -> None:
        self.busy = self.leaving = False
        self._sequencing = sequencing
        self._slots: list[Course[T] | None] = [None] * sequencing.slots
        self._free = list(range(sequencing.slots))

    @property
    def first_free(self) -> float:
        """The lowest slot that a sequence may have; infinite without one."""
        return self._free[0] if self._free and not self.leaving else math.inf

    @property
    def sequences(self) -> int:
        """That it has."""
        return len(self._slots) - len(self._free)

    def enter(self, course: Course[T]) -> None:
        """Give a sequence the first free slot."""
        course.lane, course.slot = self, heapq.heappop(self._free)
        self._slots[course.slot] = course

    def replace(self, course: Course[T], by: Course[T]) -> None:
        """Give a sequence the slot of one that has ended."""
        by.lane, by.slot = self, course.slot
        self._slots[course.slot] = by

    def leave(self, course: Course[T]) -> None:
        """A sequence has ended."""
        self._slots[course.slot] = None
        heapq.heappush(self._free, course.slot)

    @abstractmethod
    def note(self, course: Course[T], now: float) -> None:
        """A sequence has a request that can be computed now, or has none any more."""

    @abstractmethod
    def choose(self, now: float) -> list[Course[T]] | float:
        """The sequences whose requests are the next batch, by their slots; or when to ask again."""

    def take(self, now: float) -> SequenceBatch[T] | float:
        """As `choose`, with the requests, which wait no more."""
        chosen = self.choose(now)
        if isinstance(chosen, float):
            return chosen
        turns: list[Turn[T]] = []
        for course in chosen:
            turn = course.turns.popleft()
            turn.waits, course.busy = False, True
            turns.append(turn)
            self.note(course, now)
        self.busy = True
        places = self._places(chosen)
        return SequenceBatch(list(turns), places[-1] + 1, now, self, chosen, places, turns)

    @abstractmethod
    def _places(self, chosen: Iterable[Course[T]]) -> list[int]:
        """Where they stand in the batch."""


class DirectLane(Lane[T]):
    """A sequence has the place of its slot in every batch."""

    def __init__(self, sequencing: Sequencing) -> None:
        super().__init__(sequencing)
        self._ready: set[int] = set()

    def note(self, course: Course[T], now: float) -> None:
        """As `Lane.note`."""
        (self._ready.add if course.turns and not course.busy else self._ready.discard)(course.slot)

    def choose(self, now: float) -> list[Course[T]] | float:
        """All that can be computed together with the first one."""
        if not self._ready:
            return math.inf
        ready = [course for slot in sorted(self._ready) if (course := self._slots[slot]) is not None]
        limits = self._sequencing
        if limits.max_queue_delay and len(ready) < limits.minimum_slot_utilization * limits.max_batch_size:
            until = min(course.turns[0].arrived for course in ready) + limits.max_queue_delay
            if until > now:
                return until
        kind = ready[0].turns[0].kind
        return [course for course in ready if course.turns[0].kind == kind]

    def _places(self, chosen: Iterable[Course[T]]) -> list[int]:
        return [course.slot for course in chosen]


class OldestLane(Lane[T]):
    """Those make a batch that could be computed for longest."""

    def __init__(self, sequencing: Sequencing) -> None:
        super().__init__(sequencing)
        self._ready: dict[Course[T], float] = {}

    def note(self, course: Course[T], now: float) -> None:
        """As `Lane.note`."""
        if course.turns and not course.busy:
            self._ready.setdefault(course, now)
        else:
            self._ready.pop(course, None)

    def choose(self, now: float) -> list[Course[T]] | float:
        """As many as there may be of those that can be computed with the first one."""
        if not self._ready:
            return math.inf
        limits, first = self._sequencing, next(iter(self._ready))
        kind = first.turns[0].kind
        same = [course for course in self._ready if course.turns[0].kind == kind][: limits.max_batch_size]
        until = self._ready[first] + limits.max_queue_delay
        whole = len(same) == limits.max_batch_size or len(same) < len(self._ready)
        if not whole and len(same) not in limits.preferred_batch_sizes and until > now:
            return until
        preferred = [size for size in limits.preferred_batch_sizes if size <= len(same)]
        return same[: max(preferred)] if preferred else same

    def _places(self, chosen: Iterable[Course[T]]) -> list[int]:
        return [place for place, _ in enumerate(chosen)]
