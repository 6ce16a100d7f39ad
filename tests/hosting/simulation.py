"""A model's requests on a clock of its own: clients that wait for their answers, or arrivals at random."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from octavo.hosting.batcher import Batch, Batcher
from octavo.hosting.batching import Batching


@dataclass(frozen=True)
class Report:
    """What came of it: seconds, requests per second, items.

    Attributes:
        waits: by request, from arrival to answer.
    """

    waits: list[float]
    rate: float
    sizes: list[int]

    @property
    def mean_wait(self) -> float:
        return sum(self.waits) / len(self.waits)

    @property
    def mean_size(self) -> float:
        return sum(self.sizes) / len(self.sizes)

    def percentile(self, share: float) -> float:
        return sorted(self.waits)[int(share * len(self.waits))]


def simulate(
    batching: Batching,
    seconds: Callable[[int], float],
    *,
    clients: int = 0,
    later: int = 0,
    rate: float = 0.0,
    instances: int = 1,
    requests: int = 2000,
    pause: tuple[float, float] = (0.2e-3, 2e-3),
) -> Report:
    """Run a model until so many requests are answered.

    Args:
        seconds: that a batch of so many items takes.
        clients: that ask again after each answer, when a `pause` of so many seconds at least and at most has passed.
        later: clients beside these after a quarter of the requests.
        rate: of requests that come at random, per second.
    """
    rng = random.Random(0)
    batcher: Batcher[None] = Batcher(batching, instances)
    numbers = itertools.count()
    events: list[tuple[float, int, tuple[Batch[None], float] | None]] = []
    arrivals = _arrivals(random.Random(1), rate) if rate else iter(())

    def arrive(when: float | None) -> None:
        if when is not None:
            heapq.heappush(events, (when, next(numbers), None))

    for _ in range(clients):
        arrive(rng.uniform(*pause))
    arrive(next(arrivals, None))
    now, wake, free = 0.0, math.inf, instances
    unread: list[float] = []
    waits: list[float] = []
    sizes: list[int] = []
    while len(waits) < requests:
        if events and events[0][0] <= wake:
            now, _, done = heapq.heappop(events)
            if done is None:
                unread.append(now)
                arrive(next(arrivals, None))
            else:
                batch, began = done
                free += 1
                batcher.note_done(batch, now - began)
                sizes.append(batch.items)
                for waiting in batch.requests:
                    waits.append(now - waiting.arrived)
                    if clients:
                        arrive(now + rng.uniform(*pause))
                if later and len(waits) >= requests // 4:
                    for _ in range(later):
                        arrive(now + rng.uniform(*pause))
                    later = 0
        else:
            now = wake
        while free and unread:  # nobody reads while all compute
            batcher.push(None, now=unread.pop(0))
        wake = math.inf
        while free:
            taken = batcher.take(now)
            if not isinstance(taken, Batch):
                wake = taken
                break
            free -= 1
            ends = now + seconds(taken.items) * rng.uniform(0.95, 1.05)
            heapq.heappush(events, (ends, next(numbers), (taken, now)))
    return Report(waits, len(waits) / now, sizes)


def _arrivals(rng: random.Random, rate: float) -> Iterator[float]:
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now
