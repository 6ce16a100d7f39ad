"""What frontends ask of a hosted model, and what they get."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeAlias

from octavo.hosting.info import HostedInfo
from octavo.hosting.tensors import Buffer, Encoded
from octavo.hosting.trace import Span
from octavo.hosting.wire import Details, Output, Part, Timing, tensors_of

if TYPE_CHECKING:
    import hashlib

Digest: TypeAlias = "hashlib._Hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A request of tensors.

    Attributes:
        inputs: by name. outputs: those that are wanted; none for all.
        priority: 1 is the most urgent, 0 the model's default. timeout: seconds that it may wait; 0 for ever.
        details: for models that want them. trace: where it is written down, if it is.
    """

    inputs: Mapping[str, Encoded]
    outputs: Sequence[str] = ()
    priority: int = 0
    timeout: float = 0.0
    details: Details | None = None
    trace: Span | None = None


@dataclass(slots=True, eq=False)
class Outline:
    """Inferences without their bytes, which were found to fit a model: what need not be found out again of those that
    are asked for again and again.

    Attributes:
        info: of the model. parts: the inputs. size: bytes of all of them. items: of the batch dimension.
        outputs: that are wanted; none for all.
        digest: of all this, where answers are kept, and that of the model which it is made from.
    """

    info: HostedInfo
    parts: tuple[Part, ...]
    size: int
    items: int
    outputs: tuple[str, ...]
    digest: tuple[Digest, Digest] | None = None


@dataclass(slots=True, eq=False)
class Outlined:
    """An inference of which the outline is known.

    Attributes:
        tensors: the bytes of the inputs, one behind the other, in any number of pieces.
        priority, timeout, details, trace: as for `Inference`.
    """

    outline: Outline
    tensors: Sequence[Buffer]
    priority: int = 0
    timeout: float = 0.0
    details: Details | None = None
    trace: Span | None = None


class Outputs(dict[str, Encoded]):
    """A result: tensors by name.

    Attributes:
        parameters: what the model says beside them. last: whether it is known that no other result follows.
    """

    def __init__(self, output: Output, data: memoryview) -> None:
        super().__init__(tensors_of(output.parts, data))
        self.parameters = output.parameters or {}
        self.last = output.last


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyCall:
    """A request as it came over HTTP, for a model that takes JSON (`HostedInfo.body`). The model's process reads it.

    Attributes:
        media_type: the whole Content-Type. priority, timeout: as for `Inference`.
    """

    media_type: str
    body: Buffer
    priority: int = 0
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class Body:
    """A result as it goes over HTTP."""

    media_type: str
    data: Buffer


@dataclass(slots=True)
class BatchStatistics:
    """Batches of one size. Attributes: count: of batches. compute: nanoseconds of all of them."""

    count: int = 0
    compute: int = 0


@dataclass(slots=True)
class Statistics:
    """What a frontend has seen of a model since it was offered; durations are nanoseconds.

    Attributes:
        success, failure: requests. success_time, failure_time: from their arrival to their end.
        rejected, canceled: requests of the failed ones that were never computed: refused, or left by their clients.
        failed_computing: those that a model was asked for.
        inferences: items that were computed. executions: batches.
        queue, compute: of the computed requests together.
        cache_hits: of the requests that succeeded, those whose answer was in the cache, and were not computed.
        cache_misses: those whose answer is since. cache_hit_time, cache_miss_time: to look for it, and to put it there.
        last: seconds since the epoch of the last one that was computed.
        batches: by size.
    """

    success: int = 0
    failure: int = 0
    success_time: int = 0
    failure_time: int = 0
    rejected: int = 0
    canceled: int = 0
    failed_computing: int = 0
    inferences: int = 0
    executions: int = 0
    queue: int = 0
    compute: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_hit_time: int = 0
    cache_miss_time: int = 0
    last: float = 0.0
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def note(self, timing: Timing, items: int) -> None:
        """A request was computed. Args: items: that came of it, of the batch dimension."""
        self.last = time.time()
        self.inferences += items
        self.queue += timing.queue
        self.compute += timing.compute
        if timing.lead:
            self.executions += 1
            batch = self.batches.setdefault(timing.items, BatchStatistics())
            batch.count += 1
            batch.compute += timing.compute


def added(seen: Sequence[Statistics]) -> Statistics:
    """What several have seen of one model, together."""
    if len(seen) == 1:
        return seen[0]
    whole = Statistics()
    for each in seen:
        for field_ in fields(Statistics):
            if field_.name not in ("last", "batches"):
                setattr(whole, field_.name, getattr(whole, field_.name) + getattr(each, field_.name))
        whole.last = max(whole.last, each.last)
        for size, batches in each.batches.items():
            batch = whole.batches.setdefault(size, BatchStatistics())
            batch.count += batches.count
            batch.compute += batches.compute
    return whole
