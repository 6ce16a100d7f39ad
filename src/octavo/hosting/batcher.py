"""When which requests are computed together.

Nothing here waits or reads a clock: whoever calls says what time it is.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pace import Cost, Followers
from octavo.hosting.queue import Queue, Waiting

T = TypeVar("T")


@dataclass(slots=True)
class Batch(Generic[T]):
    """Requests that are computed together, of one kind, the most urgent first. Attributes: began: when it was taken."""

    requests: list[Waiting[T]]
    items: int
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
        self._followers = Followers(self.cost)
        self._timed = any(each.default_timeout for each in (batching.default_policy, *batching.policies.values()))
        self._wanted = {batching.max_batch_size, *batching.preferred_batch_sizes}

    def __len__(self) -> int:
        """Requests that wait."""
        return self._queue.requests

    def resize(self, batching: Batching, instances: int) -> None:
        """So many instances compute from now on, and the queue has other bounds."""
        self._batching, self._instances = batching, instances
        self._queue.rebind(batching)

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
        self._followers.came(items, now, idle=not self._busy and self._queue.requests == 1)
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

    def take(self, now: float, *, looks: bool = False) -> Batch[T] | float:
        """The next batch, for an instance that is free. `note_done` when it was computed.

        Args:
            looks: leave it in the queue: it is not computed yet.

        Returns:
            The batch; or when to ask again at the latest, if nothing comes before: infinite if nothing waits.
        """
        self._expired += self._queue.expire(now)
        first = self._queue.first()
        if first is None:
            return math.inf
        batch = self._collect(first, now)
        alone = len(batch.requests) == self._queue.requests  # or whoever else waits would wait with it
        if alone and batch.items not in self._wanted and (until := self._until(batch)) > now:
            return min(until, self._queue.next_deadline)
        if not looks:
            self._queue.take(batch.requests)
            self._busy += 1
        return batch

    def note_done(self, batch: Batch[T], seconds: float) -> bool:
        """A batch was computed, in so many seconds, whatever came of it. Returns whether `cost` may have changed."""
        self._busy -= 1
        self._followers.answered(batch.items, batch.began + seconds)
        return self.cost.note(batch.items, seconds)

    def _size(self, kind: Hashable) -> int:
        """Items of the next batch at most."""
        most = self._batching.max_batch_size
        if not self._batching.preferred_batch_sizes:
            return most
        most = min(self._queue.items_of(kind), most)
        return max((size for size in self._batching.preferred_batch_sizes if size <= most), default=most)

    def _collect(self, first: Waiting[T], now: float) -> Batch[T]:
        """As many as there is room for; the first one in any case."""
        room, items = self._size(first.kind), 0
        found: list[Waiting[T]] = []
        for waiting in self._queue.of_kind(first.kind):
            if found and items + waiting.items > room:
                break
            found.append(waiting)
            items += waiting.items
        return Batch(found, items, now)

    def _until(self, batch: Batch[T]) -> float:
        """When a batch that is not full has waited for long enough."""
        batching = self._batching
        if batching.max_queue_delay is not None:
            return _oldest(batch) + batching.max_queue_delay
        if self._busy + 1 < self._instances:  # another instance is free for whoever comes
            return -math.inf
        until = self._followers.until(batch.items, batching.max_batch_size - batch.items, batch.began)
        if batching.latency_target:
            until = min(until, _oldest(batch) + batching.latency_target - self.cost.of(batch.items + 1))
        return until


def _oldest(batch: Batch[T]) -> float:
    return min(waiting.arrived for waiting in batch.requests)
