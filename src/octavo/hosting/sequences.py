"""When which requests of sequences are computed together.

A sequence has a slot of an instance from its first request to its last, and one request of it is computed at a time,
in their order. Nothing here waits or reads a clock: whoever calls says what time it is.
"""

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.lanes import Course, DirectLane, Lane, OldestLane, SequenceBatch, SequenceId, Turn
from octavo.hosting.pace import Cost
from octavo.hosting.sequencing import Sequencing
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START

T = TypeVar("T")


class Sequences(Generic[T]):
    """Makes batches of the requests of sequences of one model.

    Args:
        model: its name, for errors. instances: that compute at the same time, each with slots of its own.

    Attributes:
        cost: of batches, as they were measured.
    """

    def __init__(self, sequencing: Sequencing, model: str, instances: int = 1) -> None:
        self.cost = Cost()
        self._sequencing = sequencing
        self._model = model
        self._lanes: list[Lane[T]] = [self._new_lane() for _ in range(instances)]
        self._open: dict[SequenceId, Course[T]] = {}
        self._last: dict[SequenceId, Course[T]] = {}
        self._idle: dict[Course[T], None] = {}
        self._backlog: dict[Course[T], None] = {}
        self._deadlines: list[tuple[float, int, Course[T]]] = []
        self._refused: list[tuple[Turn[T], InferenceError]] = []
        self._numbers = itertools.count(1)
        self._length = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._length

    @property
    def goes_on(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._last)

    def knows(self, sequence: SequenceId) -> bool:
        """Whether a sequence has begun, and has not ended."""
        return sequence in self._last

    def resize(self, instances: int, now: float) -> None:
        """So many instances compute from now on. Sequences stay where they are until they end."""
        staying = [lane for lane in self._lanes if not lane.leaving]
        for lane in sorted(staying, key=lambda lane: lane.sequences)[: max(len(staying) - instances, 0)]:
            lane.leaving = True
        for lane in [lane for lane in self._lanes if lane.leaving]:
            self._let_go(lane)
        self._lanes += [self._new_lane() for _ in range(instances - len(staying))]
        for course in list(self._backlog):
            if not self._enter(course):
                break
            del self._backlog[course]
            self._settle(course, now)

    def _new_lane(self) -> Lane[T]:
        return OldestLane(self._sequencing) if self._sequencing.oldest else DirectLane(self._sequencing)

    def _enter(self, course: Course[T]) -> bool:
        """Give a sequence a slot, if there is one."""
        lane = min(self._lanes, key=lambda lane: lane.first_free)
        if lane.first_free == math.inf:
            return False
        lane.enter(course)
        return True

    def _let_go(self, lane: Lane[T]) -> None:
        """An instance that takes no more sequences is gone, if it has none."""
        if lane.leaving and not lane.sequences and not lane.busy:
            self._lanes.remove(lane)

    # --- requests -----------------------------------------------------------------------------------------------------

    def push(
        self,
        request: T,
        *,
        sequence: SequenceId,
        flags: int = 0,
        items: int = 1,
        kind: Hashable = None,
        now: float,
        timeout: float = 0.0,
    ) -> Turn[T]:
        """Add a request.

        Args:
            kind: requests of other kinds are not computed with it.
            timeout: seconds that its sequence may wait for a slot; 0 for ever.

        Raises:
            InferenceError: it belongs to no sequence.
        """
        self._end_idle(now)  # nobody has looked since, if nothing waited
        number = next(self._numbers)
        if items > 1:
            raise InferenceError(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence "
                "batcher"
            )
        if not sequence:
            if not self._sequencing.iterative:
                raise InferenceError(
                    f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID"
                )
            sequence, flags = -number, SEQUENCE_START
        course = self._open.get(sequence)
        if course is None:
            if not flags & SEQUENCE_START:
                raise InferenceError(
                    f"inference request for sequence {sequence} to model '{self._model}' must specify the START flag "
                    f"on the first request of the sequence; one without a request for {self._sequencing.max_idle:g} s "
                    "is over"
                )
            course = self._begin(sequence)
        turn = Turn(request, 1, kind, now, now + timeout if timeout else math.inf, 1, number, flags=flags, of=course)
        course.turns.append(turn)
        self._length += 1
        if flags & SEQUENCE_END or self._sequencing.iterative:
            self._close(course)
        if course.lane is None:
            if turn.deadline < course.deadline:
                course.deadline = turn.deadline
                heapq.heappush(self._deadlines, (turn.deadline, number, course))
        else:
            self._idle.pop(course, None)
            course.lane.note(course, now)
        return turn

    def cancel(self, turn: Turn[T]) -> bool:
        """Nobody waits for a request any more. If it is not being computed, its sequence ends before it, for the model
        would miss it: what follows is refused.

        Returns:
            Whether it was still waiting.
        """
        if not turn.waits:
            return False
        course = turn.of
        assert course is not None
        error = InferenceError(
            f"sequence {course.id} of model '{self._model}' was ended: a request of it was cancelled before it was "
            "computed",
            Code.UNAVAILABLE,
        )
        self._drop(course, len(course.turns) - course.turns.index(turn), error, but=turn)
        self._settle(course, turn.arrived)
        return True

    def refused(self, now: float) -> list[tuple[Turn[T], InferenceError]]:
        """Requests that will not be computed, and why."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, course = heapq.heappop(self._deadlines)
            if course.lane is None and course.deadline == deadline and course.turns:
                why = "timeout of the corresponding sequence has been expired"
                self._drop(course, len(course.turns), InferenceError(why, Code.UNAVAILABLE))
                self._settle(course, now)
        refused, self._refused = self._refused, []
        return refused

    @property
    def next_deadline(self) -> float:
        """When `refused` has more, or a sequence has had no request for too long; infinite if neither will be."""
        if self._refused:
            return -math.inf
        backlog = self._deadlines[0][0] if self._deadlines else math.inf
        idle = next(iter(self._idle)).idle_since + self._sequencing.max_idle if self._idle else math.inf
        return min(backlog, idle)

    # --- batches ------------------------------------------------------------------------------------------------------

    def take(self, now: float) -> SequenceBatch[T] | float:
        """The next batch, for an instance that is free. `note_done` when it was computed.

        Returns:
            The batch; or when to ask again at the latest, if nothing comes before: infinite if nothing waits.
        """
        self._end_idle(now)
        again = math.inf
        for at, lane in enumerate(self._lanes):
            if lane.busy:
                continue
            found = lane.take(now)
            if not isinstance(found, float):
                self._lanes.append(self._lanes.pop(at))  # the others have the next turn
                self._length -= len(found.requests)
                return found
            again = min(again, found)
        return again

    def due(self, now: float) -> float:
        """When `take` has a batch, as far as that is known: infinitely long ago if it has one now."""
        self._end_idle(now)
        again = math.inf
        for lane in self._lanes:
            if not lane.busy:
                found = lane.choose(now)
                again = min(again, found if isinstance(found, float) else -math.inf)
        return again

    def note_done(self, batch: SequenceBatch[T], seconds: float) -> bool:
        """A batch was computed, in so many seconds, whatever came of it. Returns whether `cost` says something new."""
        batch.lane.busy = False
        now = batch.began + seconds
        for course in batch.courses:
            course.busy = False
            self._settle(course, now)
        if batch.lane.leaving and batch.lane in self._lanes:
            self._let_go(batch.lane)
        return self.cost.note(batch.items, seconds)

    def again(self, turn: Turn[T], now: float) -> None:
        """A model of iterative sequences wants a request once more that it has just computed; before `note_done`."""
        course = turn.of
        assert course is not None
        turn.flags, turn.waits, turn.arrived = 0, True, now
        course.turns.append(turn)
        self._length += 1

    # --- sequences ----------------------------------------------------------------------------------------------------

    def _begin(self, sequence: SequenceId) -> Course[T]:
        course: Course[T] = Course(sequence)
        before = self._last.get(sequence)
        self._open[sequence] = self._last[sequence] = course
        if before is not None:  # it has had its last request, which is still to be computed: none overtakes it
            before.next = course
        elif not self._enter(course):
            self._backlog[course] = None
        return course

    def _close(self, course: Course[T]) -> None:
        """Take no more requests for a sequence."""
        course.ended = True
        if self._open.get(course.id) is course:
            del self._open[course.id]

    def _drop(self, course: Course[T], count: int, error: InferenceError, but: Turn[T] | None = None) -> None:
        """End a sequence before its last requests, which are refused."""
        self._close(course)
        for _ in range(count):
            turn = course.turns.pop()
            turn.waits = False
            self._length -= 1
            if turn is not but:
                self._refused.append((turn, error))

    def _settle(self, course: Course[T], now: float) -> None:
        """Something has changed for a sequence: it may be idle, or over."""
        if course.lane is not None:
            course.lane.note(course, now)
        if course.turns or course.busy:
            return
        if not course.ended:
            course.idle_since = now
            self._idle[course] = None
        elif course.lane is not None or course in self._backlog:  # or it waits behind another, which will find it over
            self._end(course, now)

    def _end(self, course: Course[T], now: float) -> None:
        """A sequence is over: its slot is another's."""
        self._idle.pop(course, None)
        following = course.next
        while following is not None and following.ended and not following.turns:  # it is over before it began
            following = following.next
        if following is None:
            del self._last[course.id]
        lane = course.lane
        if lane is None:
            del self._backlog[course]
            if following is not None:
                self._backlog[following] = None
            return
        if lane.leaving:
            lane.leave(course)
            self._let_go(lane)
            if following is not None and not self._enter(following):
                self._backlog[following] = None
            elif following is not None:
                self._settle(following, now)
            return
        if following is None:
            following = next(iter(self._backlog), None)
            if following is not None:
                del self._backlog[following]
        if following is None:
            lane.leave(course)
        else:
            lane.replace(course, following)
            self._settle(following, now)

    def _end_idle(self, now: float) -> None:
        """End sequences that have had no request for too long."""
        while self._idle:
            course = next(iter(self._idle))
            if course.idle_since + self._sequencing.max_idle > now:
                return
            self._close(course)
            self._end(course, now)
