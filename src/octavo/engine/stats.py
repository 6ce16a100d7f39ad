"""Where an engine stands."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Where the engine stands. Counters grow from the engine's start.

    Attributes:
        running, waiting: sequences that hold a row, and all others that have not ended.
        kv_usage: share of the pages that sequences own, 0 to 1.
        stored_tokens, held_tokens: tokens in pages, and the capacity of the pages that sequences hold, now.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found.
        preemptions: sequences that lost their pages for a while.
        steps: steps run. step_tokens: tokens computed by the last one.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    stored_tokens: int = 0
    held_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    step_tokens: int = 0


class Rate:
    """Events per second of work, averaged with weights that fade over half a minute of it."""

    _WINDOW = 30.0

    def __init__(self) -> None:
        self._events = self._seconds = 0.0

    def note(self, events: int, seconds: float) -> None:
        """So many events came of so many seconds of work."""
        fade = math.exp(-seconds / self._WINDOW)
        self._events = self._events * fade + events
        self._seconds = self._seconds * fade + seconds

    def per_second(self) -> float:
        """The rate now; 0 before the first event."""
        return self._events / self._seconds if self._events else 0.0
