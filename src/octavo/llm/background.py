"""An event loop on a thread of its own, so that engines serve callers of any thread, with or without a loop."""

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, TypeVarTuple

from octavo.errors import OctavoError

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class ClosedError(OctavoError):
    """What was asked needs something that has ended, or that lives in another process."""


class Background(Generic[T]):
    """Keeps an asynchronous context open on a thread until it is closed or collected, or the interpreter ends.

    Threads do not survive a fork: a forked child can use nothing of this, and ends nothing of its parent's.

    Args:
        what: what lives here, for errors and the thread's name.
        opening: makes the context, which is entered, used and left on the thread.
    """

    def __init__(self, what: str, opening: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._what = what
        self._life = _Life(opening)
        # At the interpreter's end `_end_all` does it, because it waits. A finalizer must not: it may run on any thread.
        weakref.finalize(self, self._life.end).atexit = False
        threading.Thread(target=self._life.run, name=f"octavo-{what}", daemon=True).start()
        try:
            self.value: T = self._life.opened.result()
        except BaseException:  # Ctrl-C included
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether anything can be run here, by this process."""
        return os.getpid() == self._life.pid and not self._life.ending

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the thread and wait for it. An exception meanwhile, such as Ctrl-C, cancels it.

        Raises:
            ClosedError: this is closed, or was closed before the coroutine had ended.
        """
        future = self.submit(work)
        try:
            return self.result(future)
        finally:
            future.cancel()  # if it has not ended

    async def arun(self, work: Coroutine[Any, Any, R]) -> R:
        """`run` for callers with an event loop, which goes on meanwhile."""
        future, loop, done = self.submit(work), asyncio.get_running_loop(), asyncio.Event()
        future.add_done_callback(lambda _: tell(loop, done.set))
        try:
            await done.wait()
        finally:
            future.cancel()  # if it has not ended
        return self.result(future)

    def submit(self, work: Coroutine[Any, Any, R]) -> "Future[R]":
        """Run a coroutine on the thread. Raises ClosedError."""
        handed_over = False
        try:
            with self._life.lock:  # what is begun before the end begins is cancelled by it, not forgotten
                self.check()
                handed_over = True
                return asyncio.run_coroutine_threadsafe(work, self._life.loop)
        except BaseException:
            if handed_over:  # Ctrl-C: it may run already
                tell(self._life.loop, _abandon, work)
            else:
                work.close()
            raise

    def result(self, future: "Future[R]") -> R:
        """Wait for what was submitted. Raises ClosedError if the end came first."""
        try:
            return future.result()
        except (CancelledError, OctavoError) as error:
            if self._life.exiting:
                threading.Event().wait()  # this is a daemon thread: it ends with the process, without a traceback
            if self._life.ending:
                raise self._closed() from error
            raise

    def check(self) -> None:
        """Raise ClosedError if nothing can be run here any more, or not from this thread."""
        if os.getpid() != self._life.pid:
            raise ClosedError(f"this {self._what} belongs to process {self._life.pid}, which forked; make one here")
        if self._life.ending:
            raise self._closed()
        if threading.get_ident() == self._life.thread:
            raise ClosedError(f"this {self._what} would wait for itself: call it from another thread")

    def close(self) -> None:
        """End what lives here and wait until it has ended. May be called again."""
        self._life.end()
        self._life.join()

    def _closed(self) -> ClosedError:
        return ClosedError(f"this {self._what} was closed")


class _Life(Generic[T]):
    """The thread's side. It refers to nothing of the owner's, so that the owner can be collected."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.opened: Future[T] = Future()
        self.ending = self.exiting = False
        self.thread: int | None = None
        self.lock = threading.RLock()  # a finalizer may call `end` on a thread that holds it
        self._opening = opening
        self._task = self.loop.create_task(self._live())
        self._ended = threading.Event()
        _lives.add(self)

    async def _live(self) -> None:
        async with self._opening() as value:
            self.opened.set_result(value)
            await asyncio.Event().wait()  # until `end` cancels it

    def run(self) -> None:
        self.thread = threading.get_ident()
        try:
            self.loop.run_until_complete(self._task)
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
        with self.lock:
            self.ending = True
        # By hand and not with asyncio.run, which starts a thread at its end: the interpreter allows none at its own.
        self.loop.run_until_complete(_cancel_others())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        _lives.discard(self)
        self._ended.set()

    def end(self) -> None:
        """Begin the end."""
        with self.lock:
            if self.ending or os.getpid() != self.pid:
                return
            self.ending = True
            self.loop.call_soon_threadsafe(self._task.cancel)

    def join(self) -> None:
        """Wait for the end."""
        if os.getpid() == self.pid and threading.get_ident() != self.thread:
            self._ended.wait()


def tell(loop: asyncio.AbstractEventLoop, callback: Callable[[*Ts], object], *args: *Ts) -> None:
    """Call something on a loop of another thread, if it still runs: nobody waits there otherwise."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)


def _abandon(work: Coroutine[Any, Any, Any]) -> None:
    """End a coroutine that nobody waits for, in the loop that has it or was to have it."""
    for task in asyncio.all_tasks():
        if task.get_coro() is work:
            task.cancel()
            return
    work.close()


async def _cancel_others() -> None:
    await asyncio.sleep(0)  # what was handed over last becomes a task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


_lives: "set[_Life[Any]]" = set()


def _end_all() -> None:
    lives = list(_lives)
    for life in lives:
        life.exiting = True
        life.end()
    for life in lives:
        life.join()


atexit.register(_end_all)
