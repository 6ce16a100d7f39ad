"""How much a frontend has asked a hosted model for, and whether it asks for more: what a process would refuse when it
gets to it, which may take a while, is refused at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.hosting.batching import Batching
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.wire import Pace


@dataclass(slots=True)
class Level:
    """Requests of one priority that wait or are computed, and their items."""

    requests: int = 0
    items: int = 0


class Admission:
    """Attributes: pace: what batches cost, as the model's processes say."""

    def __init__(self) -> None:
        self.pace = Pace(0.0, 0.0)
        self._levels: dict[int, Level] = {}

    @property
    def requests(self) -> int:
        """That wait or are computed."""
        return sum(each.requests for each in self._levels.values())

    def level(self, number: int) -> Level:
        """That of a number."""
        found = self._levels.get(number)
        if found is None:
            found = self._levels[number] = Level()
        return found

    def check(self, info: HostedInfo, level: int, seconds: float) -> None:
        """Whether a request may wait.

        Args:
            seconds: that it may do so for; 0 for ever.

        Raises:
            InferenceError: too many wait, or it would for too long.
        """
        batching = info.queue
        policy = batching.policy(level)
        if policy.max_queue_size:
            waiting = self.level(level).requests - info.at_once * batching.max_batch_size
            if waiting >= policy.max_queue_size:
                raise InferenceError(
                    f"Exceeds maximum queue size: {policy.max_queue_size} requests wait already",
                    Code.UNAVAILABLE,
                    retry_after=self._expected_wait(batching, info.at_once, level) or None,
                )
        if seconds and not policy.delays:
            expected = self._expected_wait(batching, info.at_once, level)
            if expected > seconds:
                raise InferenceError(
                    f"Request timeout expired: it may wait for {seconds:g} s, and would for {expected:.3g} s",
                    Code.UNAVAILABLE,
                    retry_after=expected,
                )

    def _expected_wait(self, batching: Batching, at_once: int, level: int) -> float:
        before: Sequence[Level] = [there for each, there in self._levels.items() if each <= level]
        items, most = sum(each.items for each in before), batching.max_batch_size
        batches = max(items // most + 1 - at_once, 0)
        return batches * (self.pace.per_batch + self.pace.per_item * most) / at_once
