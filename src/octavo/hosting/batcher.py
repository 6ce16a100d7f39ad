"""When which requests are computed together.

Nothing here waits or reads a clock: whoever calls says what time it is.
"""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pace import Cost, Patience
from octavo.hosting.queue import Queue, Waiting

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Requests that are computed together, of one kind, the most urgent first."""

    requests: tuple[Waiting[T], ...]
    items: int


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
        self._queue: Queue[T] = Queue(batching)
        self._patience = Patience(self.cost)
        self._wanted = {batching.max_batch_size, *batching.preferred_batch_sizes}
        # A batch waits for one more, or has gone without: with so many items, since then.
        self._held: tuple[int, float] | None = None
        self._gone: tuple[int, float] | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def push(
        self, request: T, *, items: int = 1, kind: object = None, now: float, priority: int = 0, timeout: float = 0.0
    ) -> Waiting[T]:
        """Add a request; arguments are as for `Queue.push`.

        Raises:
            InferenceError: too many wait; or it would wait for longer than it may.
        """
        if items > self._batching.max_batch_size:
            raise InferenceError(
                f"inference request batch-size must be <= {self._batching.max_batch_size}, and is {items}"
            )
        level = self._batching.level(priority)
        policy = self._batching.policy(level)
        seconds = policy.timeout(timeout)
        if seconds and not policy.delays and self.expected_wait > seconds:
            raise InferenceError(
                f"Request timeout expired: it may wait for {seconds:g} s, and would for {self.expected_wait:.3g} s",
                Code.UNAVAILABLE,
                retry_after=self.expected_wait,
            )
        try:
            waiting = self._queue.push(request, items=items, kind=kind, now=now, priority=priority, timeout=timeout)
        except InferenceError as error:
            error.retry_after = self.expected_wait or None
            raise
        if self._gone is not None:
            count, since = self._gone
            self._patience.note(count, now - since, came=True)
            self._gone = None
        return waiting

    def cancel(self, waiting: Waiting[T]) -> bool:
        """Nobody waits for it any more. Returns whether it was still in the queue."""
        return self._queue.remove(waiting)

    def expire(self, now: float) -> list[Waiting[T]]:
        """Those that have waited for too long, and are to be told so."""
        return self._queue.expire(now)

    @property
    def expected_wait(self) -> float:
        """Seconds until a request that comes now is begun, as far as it is known: what waits is computed before."""
        batches = self._queue.items // self._batching.max_batch_size
        return batches * self.cost.of(self._batching.max_batch_size) / self._instances

    def take(self, now: float) -> Batch[T] | float:
        """The next batch, for an instance that is free.

        Returns:
            The batch; or when to ask again at the latest, if nothing comes before: infinite if nothing waits.
        """
        first = self._queue.first()
        if first is None:
            self._held = None
            return math.inf
        batch = self._collect(first, self._size(self._queue.items_of(first.kind)))
        if self._held is not None and self._held[0] != batch.items:
            items, since = self._held
            if batch.items > items:
                self._patience.note(items, now - since, came=True)
            self._held = None
        # Whoever else waits would wait with it.
        if len(batch.requests) == len(self._queue) and batch.items not in self._wanted:
            until = self._until(batch, now)
            if until > now:
                return min(until, self._queue.next_deadline)
        self._held = None
        for waiting in batch.requests:
            self._queue.remove(waiting)
        return batch

    def note_done(self, batch: Batch[T], seconds: float) -> None:
        """A batch was computed, in so many seconds."""
        self.cost.note(batch.items, seconds)

    def _size(self, items: int) -> int:
        """Items of a batch, if there are so many of its kind."""
        most = min(items, self._batching.max_batch_size)
        return max((size for size in self._batching.preferred_batch_sizes if size <= most), default=most)

    def _collect(self, first: Waiting[T], room: int) -> Batch[T]:
        """As many as there is room for; the first one in any case."""
        found: list[Waiting[T]] = []
        items = 0
        for waiting in self._queue.of_kind(first.kind):
            if found and items + waiting.items > room:
                break
            found.append(waiting)
            items += waiting.items
        return Batch(tuple(found), items)

    def _until(self, batch: Batch[T], now: float) -> float:
        """When a batch that is not full has waited for long enough."""
        oldest = min(waiting.arrived for waiting in batch.requests)
        if self._batching.max_queue_delay is not None:
            return oldest + self._batching.max_queue_delay
        if self._held is None:
            self._held = (batch.items, now)
        items, since = self._held
        until = since + self._patience.window(items)
        if self._batching.latency_target:
            until = min(until, oldest + self._batching.latency_target - self.cost.of(items + 1))
        if until <= since:
            self._gone = self._held
        elif until <= now:
            self._patience.note(items, now - since, came=False)
        return until
