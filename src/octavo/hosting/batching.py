"""How requests are brought together: the settings, under the names that Triton's model configurations have."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.errors import ConfigError

MAX_PRIORITY_LEVELS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """What becomes of requests that wait.

    Attributes:
        max_queue_size: requests that may wait; 0 for any number.
        default_timeout: seconds that one may wait; 0 for ever.
        allow_timeout_override: whether a request may say so itself, if that is less.
        delays: whether one that waited too long is computed after the others of its level, instead of refused.
    """

    max_queue_size: int = 0
    default_timeout: float = 0.0
    allow_timeout_override: bool = True
    delays: bool = False

    def with_room(self, requests: int) -> "QueuePolicy":
        """The same with a queue that is so much longer, if it has a length."""
        return replace(self, max_queue_size=self.max_queue_size + requests) if self.max_queue_size else self

    def timeout(self, own: float) -> float:
        """Seconds that a request may wait which says so much itself; 0 for ever."""
        if own > 0 and self.allow_timeout_override:
            return min(own, self.default_timeout) if self.default_timeout else own
        return self.default_timeout

    def validate(self) -> None:
        """Raises ConfigError."""
        if self.max_queue_size < 0:
            raise ConfigError(f"max_queue_size is {self.max_queue_size}; give 0 for any number, or more")
        if not 0 <= self.default_timeout < float("inf"):
            raise ConfigError(f"default_timeout is {self.default_timeout:g} s; give 0 for ever, or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How a model's requests become batches.

    Attributes:
        max_batch_size: items of a batch.
        preferred_batch_sizes: a batch has the largest of these that there are items for; none for any size.
        max_queue_delay: seconds that a request waits for others while it could be computed; None finds out when it
            pays.
        latency_target: seconds from arrival to reply beyond which nobody is made to wait for others; 0 for none.
        priority_levels: of requests, 1 being the most urgent; 0 for none. default_priority_level: of those without.
        default_policy: of all levels that `policies` has none for.
        preserve_ordering: whether replies come in the order of the requests, however many instances there are.
    """

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay: float | None = None
    latency_target: float = 0.0
    priority_levels: int = 0
    default_priority_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    preserve_ordering: bool = False

    def with_room(self, requests: int) -> "Batching":
        """The same with queues that are so much longer, if they have a length."""
        return replace(
            self,
            default_policy=self.default_policy.with_room(requests),
            policies={level: policy.with_room(requests) for level, policy in self.policies.items()},
        )

    def level(self, priority: int) -> int:
        """The level of a request: Triton takes one that there is none of for the default."""
        if not priority:
            return self.default_priority_level or 1
        levels = max(self.priority_levels, 1)
        return priority if 1 <= priority <= levels else self.default_priority_level or 1

    def policy(self, level: int) -> QueuePolicy:
        """Of a level."""
        return self.policies.get(level, self.default_policy)

    def validate(self) -> None:
        """Raises ConfigError."""
        if self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {self.max_batch_size}; batches have 1 item or more")
        for size in self.preferred_batch_sizes:
            if not 1 <= size <= self.max_batch_size:
                raise ConfigError(
                    f"preferred_batch_sizes has {size}; give sizes from 1 to max_batch_size, {self.max_batch_size}"
                )
        if self.max_queue_delay is not None and not 0 <= self.max_queue_delay < float("inf"):
            raise ConfigError(f"max_queue_delay is {self.max_queue_delay:g} s; give 0 or more, or leave it out")
        if not 0 <= self.latency_target < float("inf"):
            raise ConfigError(f"latency_target is {self.latency_target:g} s; give 0 for none, or more")
        if not 0 <= self.priority_levels <= MAX_PRIORITY_LEVELS:
            raise ConfigError(f"priority_levels is {self.priority_levels}; give 0 to {MAX_PRIORITY_LEVELS}")
        if self.priority_levels and not 1 <= self.default_priority_level <= self.priority_levels:
            raise ConfigError(
                f"default_priority_level is {self.default_priority_level}; there are levels 1 to {self.priority_levels}"
            )
        for level in self.policies:
            if not 1 <= level <= self.priority_levels:
                raise ConfigError(f"there is a policy for level {level}, but levels 1 to {self.priority_levels}")
        for policy in (self.default_policy, *self.policies.values()):
            policy.validate()
