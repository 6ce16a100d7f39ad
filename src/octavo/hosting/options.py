"""How a model of somebody's own is served, as its code says."""

from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.hosting.batching import Batching

OPTIONS = "__octavo_model__"
"""The attribute that a decorated model has."""

MAX_INSTANCES = 1024

MAX_AT_ONCE = 256
"""Requests that asynchronous code without batches computes beside each other."""

MOST_AT_ONCE = 2**16
"""That somebody may want."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model of somebody's own is served.

    Attributes:
        name: that requests use; empty is the function's or class's, in lower case.
        max_batch_size: requests that are computed in one call; 0 calls for each alone.
        instances: of the class that compute at the same time.
        max_queue_delay: seconds that a request waits for others; None finds out when it pays.
        response_cache: whether whoever asks the same again may get the same answer.
    """

    name: str = ""
    max_batch_size: int = 0
    instances: int = 1
    max_queue_delay: float | None = None
    response_cache: bool = False

    def validate(self) -> None:
        """Raises ConfigError."""
        if self.max_batch_size < 0:
            raise ConfigError(f"max_batch_size is {self.max_batch_size}; give 0 for none, or more")
        if not 1 <= self.instances <= MAX_INSTANCES:
            raise ConfigError(f"instances is {self.instances}; give 1 to {MAX_INSTANCES}")
        Batching(max_batch_size=max(self.max_batch_size, 1), max_queue_delay=self.max_queue_delay).validate()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions(ModelOptions):
    """How an ensemble of somebody's own is served.

    Attributes:
        max_inflight_requests: that it computes beside each other; others wait in a queue that is bounded, too.
    """

    max_inflight_requests: int = MAX_AT_ONCE

    def validate(self) -> None:
        """Raises ConfigError."""
        ModelOptions.validate(self)
        if not 1 <= self.max_inflight_requests <= MOST_AT_ONCE:
            raise ConfigError(f"max_inflight_requests is {self.max_inflight_requests}; give 1 to {MOST_AT_ONCE}")
