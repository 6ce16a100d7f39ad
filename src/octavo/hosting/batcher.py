"""When which requests are computed together.

Nothing here waits or reads a clock: whoever calls says what time it is.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pace import Cost, Patience
from octavo.hosting.queue import Queue, Waiting

T = TypeVar("T")


@dataclass(slots=True)
class Batch(Generic[T]):
    """Requests that are computed together, of one kind, the most urgent first."""

    requests: list[Waiting[T]]
    items: int


@dataclass(slots=True)
class _Hold:
    """A batch that waits for one more, or has gone without one.

    Attributes:
        kind, items: what is there. since: when the last of them came, or an instance became free.
        began: when it began to wait.
    """

    kind: Hashable
    items: int
    since: float
    began: float


class Batcher(Generic[T]):
    """Makes batches of the requests for one model.

    Args:
        instances: that compute at the same time.

    Attributes:
        cost: of batches, as they were measured.
    """

    def __init__(self, batching: Batching, instances: int = 1) -> None:
        self.cost = Cost()
        self._batching = batching
        self._instances = instances
        self._busy = 0
        self._queue: Queue[T] = Queue(batching)
        self._expired: list[Waiting[T]] = []
        self._patience = Patience(self.cost)
        self._timed = any(each.default_timeout for each in (batching.default_policy, *batching.policies.values()))
        self._wanted = {batching.max_batch_size, *batching.preferred_batch_sizes}
        self._held: _Hold | None = None
        self._gone: _Hold | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def next_deadline(self) -> float:
        """When the next one will have waited too long, and `expire` has it; infinite if none will."""
        return -math.inf if self._expired else self._queue.next_deadline

    def push(
        self, request: T, *, items: int = 1, kind: Hashable = None, now: float, priority: int = 0, timeout: float = 0.0
    ) -> Waiting[T]:
        """Add a request; arguments are as for `Queue.push`.

        Raises:
            InferenceError: too many wait; or it would wait for longer than it may.
        """
        if items > self._batching.max_batch_size:
            raise InferenceError(
                f"inference request batch-size must be <= {self._batching.max_batch_size}, and is {items}"
            )
        if timeout or self._timed:
            self._check_deadline(priority, timeout)
        try:
            waiting = self._queue.push(request, items=items, kind=kind, now=now, priority=priority, timeout=timeout)
        except InferenceError as error:
            error.retry_after = self.expected_wait(self._batching.level(priority)) or None
            raise
        if self._gone is not None and self._gone.kind == kind:
            self._patience.note(self._gone.items, max(now - self._gone.since, 0.0), came=True)
            self._gone = None
        return waiting

    def _check_deadline(self, priority: int, timeout: float) -> None:
        """Raises InferenceError: it would wait for longer than it may."""
        level = self._batching.level(priority)
        policy = self._batching.policy(level)
        seconds, expected = policy.timeout(timeout), self.expected_wait(level)
        if seconds and not policy.delays and expected > seconds:
            raise InferenceError(
                f"Request timeout expired: it may wait for {seconds:g} s, and would for {expected:.3g} s",
                Code.UNAVAILABLE,
                retry_after=expected,
            )

    def cancel(self, waiting: Waiting[T]) -> bool:
        """Nobody waits for it any more. Returns whether it was still in the queue."""
        return self._queue.remove(waiting)

    def expire(self, now: float) -> list[Waiting[T]]:
        """Those that have waited for too long, and are to be told so."""
        expired = self._queue.expire(now)
        if self._expired:
            expired = self._expired + expired
            self._expired = []
        return expired

    def expected_wait(self, level: int = 1) -> float:
        """Seconds until a request of a level of priority that comes now is begun, as far as it is known: what waits
        and is as urgent is computed before, in whole batches."""
        batches = self._queue.items_before(level) // self._batching.max_batch_size
        return batches * self.cost.of(self._batching.max_batch_size) / self._instances

    def take(self, now: float) -> Batch[T] | float:
        """The next batch, for an instance that is free. `note_done` when it was computed.

        Returns:
            The batch; or when to ask again at the latest, if nothing comes before: infinite if nothing waits.
        """
        self._expired += self._queue.expire(now)
        first = self._queue.first()
        if first is None:
            self._held = None
            return math.inf
        batch = self._collect(first)
        alone = len(batch.requests) == len(self._queue)  # or whoever else waits would wait with it
        self._note_change(first.kind, batch, now, alone=alone)
        if alone and batch.items not in self._wanted and (until := self._until(batch, first.kind, now)) > now:
            return min(until, self._queue.next_deadline)
        self._held = None
        for waiting in batch.requests:
            self._queue.remove(waiting)
        self._busy += 1
        return batch

    def note_done(self, batch: Batch[T], seconds: float) -> bool:
        """A batch was computed, in so many seconds, whatever came of it. Returns whether `cost` may have changed."""
        self._busy -= 1
        return self.cost.note(batch.items, seconds)

    def _size(self, kind: Hashable) -> int:
        """Items of the next batch at most."""
        most = self._batching.max_batch_size
        if not self._batching.preferred_batch_sizes:
            return most
        most = min(self._queue.items_of(kind), most)
        return max((size for size in self._batching.preferred_batch_sizes if size <= most), default=most)

    def _collect(self, first: Waiting[T]) -> Batch[T]:
        """As many as there is room for; the first one in any case."""
        room, items = self._size(first.kind), 0
        found: list[Waiting[T]] = []
        for waiting in self._queue.of_kind(first.kind):
            if found and items + waiting.items > room:
                break
            found.append(waiting)
            items += waiting.items
        return Batch(found, items)

    def _note_change(self, kind: Hashable, batch: Batch[T], now: float, *, alone: bool) -> None:
        """Learn from what became of the batch that was held."""
        held = self._held
        if held is None or (held.kind == kind and held.items == batch.items and alone):
            return
        waited = now - held.since
        if held.kind == kind and batch.items > held.items:
            self._patience.note(held.items, waited, came=True)
            self._held = _Hold(kind, batch.items, now, held.began)
        elif held.kind != kind or not alone:  # somebody came, but nobody to be computed with it
            self._patience.note(held.items, waited, came=False)
            self._held = None
        else:  # some have left
            self._held = _Hold(kind, batch.items, held.since, held.began)

    def _until(self, batch: Batch[T], kind: Hashable, now: float) -> float:
        """When a batch that is not full has waited for long enough."""
        oldest = min(waiting.arrived for waiting in batch.requests)
        if self._batching.max_queue_delay is not None:
            return oldest + self._batching.max_queue_delay
        if self._busy + 1 < self._instances:  # another instance is free for whoever comes
            return -math.inf
        held = self._held = self._held or _Hold(kind, batch.items, now, now)
        # Beyond the cost of a batch it never pays, however many come and leave meanwhile.
        until = min(held.since + self._patience.window(held.items), held.began + self.cost.per_batch)
        if self._batching.latency_target:
            until = min(until, oldest + self._batching.latency_target - self.cost.of(held.items + 1))
        if until <= held.since:
            self._gone = held
        elif until <= now:
            self._patience.note(held.items, now - held.since, came=False)
        return until
