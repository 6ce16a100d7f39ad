"""Who hears what frontends say: the thread that makes batches, or one that waits for something of theirs meanwhile."""

import threading
from collections.abc import Callable
from types import TracebackType

from octavo.hosting.endpoint import Endpoint


class Listening:
    """A lock that the thread which receives holds.

    The thread that makes batches enters it, and gets it at once: whoever listens meanwhile is woken, and leaves it to
    that.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._wanted = False
        self._followers = 0
        self._changed = threading.Condition()
        self.receive: Callable[[float | None], object] = lambda timeout: None

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._wanted = True
            self._endpoint.wake()
            self._lock.acquire()
            self._wanted = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def acquire(self, blocking: bool = True) -> bool:
        """As a lock's."""
        return self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        """As a lock's."""
        self._leave()

    def poll(self) -> None:
        """Hear what has been said, unless another thread listens."""
        if self._lock.acquire(blocking=False):
            try:
                self.receive(0.0)
            finally:
                self._leave()

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait for something that a frontend says, or that another thread does and tells by `notify`."""
        while not is_done():
            if not self._wanted and self._lock.acquire(blocking=False):
                try:
                    while not self._wanted and not is_done():
                        self.receive(None)
                finally:
                    self._leave()
            else:
                with self._changed:
                    self._followers += 1
                    try:
                        self._changed.wait_for(lambda: is_done() or self._is_free)
                    finally:
                        self._followers -= 1

    def notify(self) -> None:
        """Something has been done that a thread may wait for."""
        self._endpoint.wake()
        self.tell()

    def tell(self) -> None:
        """The same, by whoever listens."""
        if self._followers:
            with self._changed:
                self._changed.notify_all()

    @property
    def _is_free(self) -> bool:
        return not self._wanted and not self._lock.locked()

    def _leave(self) -> None:
        self._lock.release()
        self.tell()
