"""How the requests of sequences are brought together: the settings, under the names that Triton's model configurations
have."""

from dataclasses import dataclass

from octavo.errors import ConfigError

DEFAULT_IDLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequencing:
    """How the sequences of a model become batches. Times are seconds.

    Attributes:
        max_batch_size: items of a batch; each request has one.
        slots: sequences that an instance has at once; others wait until one of them ends.
        oldest: whether any sequences make a batch, those first whose request came first; else a sequence has its place
            in every batch, and a place without a request is computed all the same.
        preferred_batch_sizes, max_queue_delay: as for requests without sequences, where `oldest` is set.
        max_queue_delay, minimum_slot_utilization: otherwise; a batch waits for so long at most, as long as a smaller
            share of the slots has a request.
        max_idle: that a sequence may have no request, before it is ended.
        iterative: whether each request is a sequence of its own, which the model has computed again and again.
    """

    max_batch_size: int = 1
    slots: int = 1
    oldest: bool = False
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay: float = 0.0
    minimum_slot_utilization: float = 0.0
    max_idle: float = DEFAULT_IDLE_SECONDS
    iterative: bool = False

    def validate(self) -> None:
        """Raises ConfigError."""
        if self.slots < 1:
            raise ConfigError(f"an instance has {self.slots} slots; give 1 or more")
        if not self.oldest and self.slots > self.max_batch_size:
            raise ConfigError(f"an instance has {self.slots} slots, but batches of up to {self.max_batch_size}")
        if not 0 <= self.minimum_slot_utilization <= 1:
            raise ConfigError("sequence batching minimum slot utilization must be in range (0.0, 1.0]")
        for size in self.preferred_batch_sizes:
            if size <= 0:
                raise ConfigError("sequence batching preferred batch size must be positive")
            if size > self.max_batch_size:
                raise ConfigError("sequence batching preferred batch size must be <= max batch size")
