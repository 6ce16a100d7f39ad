"""Work that is done one piece after the other, in a thread of its own, for one tenant after the other."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class NoTurn(Exception):
    """A tenant has as many pieces waiting as it may."""


class Turns(Generic[T]):
    """A tenant that brings much waits for itself: of those with something to do each has its turn. Thread-safe.

    Args:
        most: pieces that may wait, divided by the tenants that have some.
    """

    def __init__(self, name: str, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[tuple[Future[T], Callable[[], T]]]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, name)

    def submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        """Have something done. Raises NoTurn; RuntimeError after `close`."""
        future: Future[T] = Future()
        with self._lock:
            own = self._waiting.get(tenant, deque())
            tenants = len(self._waiting) + (tenant not in self._waiting)
            if own and len(own) >= self._most // tenants:
                raise NoTurn
            self._thread.submit(self._do_next)
            own.append((future, work))
            self._waiting[tenant] = own
        return future

    def close(self, error: Exception) -> None:
        """What has not begun fails with the error."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            abandoned = [future for own in self._waiting.values() for future, _ in own]
            self._waiting.clear()
        for future in abandoned:
            future.set_exception(error)

    def _do_next(self) -> None:
        with self._lock:
            if not self._waiting:  # closed meanwhile
                return
            tenant, own = next(iter(self._waiting.items()))
            future, work = own.popleft()
            if own:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
