"""An end for what never returns."""

import math
import signal
import threading
import time


class Watch:
    """Ends this process when a batch takes too long, even if that holds the interpreter: by a signal of the system's.

    Args:
        seconds: that a batch may take; 0 for any number.
        slots: batches at once.
    """

    def __init__(self, seconds: float, slots: int) -> None:
        self._seconds = seconds
        self._ends = [math.inf] * slots
        self._changing = threading.Lock()

    def make_room(self, slots: int) -> None:
        """There are to be so many slots at least."""
        with self._changing:
            self._ends += [math.inf] * (slots - len(self._ends))

    def begin(self, slot: int, now: float) -> None:
        """A batch is begun, or goes on: `time.monotonic()`."""
        if self._seconds:
            self._set(slot, now + self._seconds)

    def end(self, slot: int) -> None:
        """It was computed."""
        if self._seconds:
            self._set(slot, math.inf)

    def _set(self, slot: int, until: float) -> None:
        if len(self._ends) == 1:  # nothing else is to be watched
            self._ends[0] = until
            signal.setitimer(signal.ITIMER_REAL, 0.0 if until == math.inf else self._seconds)
            return
        with self._changing:
            self._ends[slot] = until
            first = min(self._ends)
            seconds = 0.0 if first == math.inf else max(first - time.monotonic(), 1e-3)  # 0 is never
            signal.setitimer(signal.ITIMER_REAL, seconds)
