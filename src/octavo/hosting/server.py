"""The loop of a hosted model's process: receive, make a batch, compute, send.

Each instance is a thread that does all four, one after the other; there is none besides. Who receives holds the lock,
so that one thread at most waits for frontends, while the others compute. With one instance nothing is ever handed from
thread to thread.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from octavo.hosting.batcher import Batch
from octavo.hosting.computation import Computation
from octavo.hosting.endpoint import Endpoint
from octavo.hosting.errors import InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.intake import Asked, Intake, failed, send_answers, timing_of, wait_of
from octavo.hosting.permits import Permits
from octavo.hosting.running import Running
from octavo.hosting.watch import Watch
from octavo.hosting.wire import Ended, Output, Reply

log = logging.getLogger(__name__)


class ModelServer:
    """Serves one model with one or more threads.

    Args:
        instances: threads that compute at the same time.
        permits: say when one of them may; None lets them always.
    """

    def __init__(
        self,
        computation: Computation,
        info: HostedInfo,
        endpoint: Endpoint,
        running: Running,
        instances: int,
        permits: Permits | None = None,
    ) -> None:
        self._computation = computation
        self._endpoint = endpoint
        self._running = running
        self._instances = instances
        self._serve_batch = self._stream if info.streams else self._compute
        self._watch = Watch(info.execution_timeout, instances)
        self._intake = Intake(endpoint, computation, info, instances)
        self._permits = permits
        if permits is not None:
            endpoint.watch(permits)
        self._receiving = threading.Lock()
        self._held = False
        self._done: deque[tuple[Batch[Asked], float]] = deque()
        self._threads = {0}
        self._changes: deque[Callable[[], None]] = deque()
        self._at_rest: Callable[[], None] | None = None

    def run(self) -> None:
        """Serve for ever."""
        self._start_threads()
        self._serve(0)

    def _start_threads(self) -> None:
        for slot in range(self._instances):
            if slot not in self._threads:
                self._threads.add(slot)
                threading.Thread(target=self._serve, args=(slot,), name=f"instance {slot}", daemon=True).start()

    # --- what changes meanwhile: any thread may say so ----------------------------------------------------------------

    def resize(self, instances: int, then: Callable[[], None]) -> None:
        """Compute with so many threads. What they have begun they end. `then` is called when it is so."""

        def change() -> None:
            self._instances = instances
            self._running.make_room(instances)
            self._watch.make_room(instances)
            self._intake.resize(instances)
            self._start_threads()
            then()

        self._change(change)

    def leave(self, then: Callable[[], None]) -> None:
        """No more will come but for what has begun: `then` is called when that has ended, and frontends have it."""

        def change() -> None:
            self._at_rest = then
            self._endpoint.wake()  # whoever receives looks whether that is so already

        self._change(change)

    def _change(self, change: Callable[[], None]) -> None:
        """Have something done by whoever receives, at once; or here, if nobody does."""
        self._changes.append(change)
        self._endpoint.wake()
        threading.Thread(target=self._change_here, name="change", daemon=True).start()

    def _change_here(self) -> None:
        with self._receiving:
            self._do_changes()

    def _do_changes(self) -> None:
        while self._changes:
            self._changes.popleft()()

    # --- batches ------------------------------------------------------------------------------------------------------

    def _serve(self, slot: int) -> None:
        permits = self._permits
        try:
            while True:
                with self._receiving:
                    batch = self._next(slot)
                    if batch is None:
                        self._threads.discard(slot)
                        return
                    if permits is not None:
                        slot = permits.take()
                began = time.monotonic()
                self._running.begin(slot, [each.request.number for each in batch.requests], began)
                self._watch.begin(slot, began)
                self._serve_batch(slot, batch, began)
                if permits is not None:
                    permits.release(slot)
                self._watch.end(slot)
                self._done.append((batch, time.monotonic() - began))
                for waiting in batch.requests:
                    waiting.request.end()
                self._intake.give_back()
                if self._held or self._at_rest is not None:
                    self._endpoint.wake()  # nobody needs to wait for others, or for an earlier one
        except BaseException:
            log.exception("a defect of Octavo; the process ends")
            os._exit(1)

    def _next(self, slot: int) -> Batch[Asked] | None:
        """Wait for a batch, and meanwhile do what frontends want. None if this thread is not wanted any more."""
        self._note_done()
        owes = self._permits is not None and self._permits.owes
        wait = None if self._intake.idle and not owes and not self._changes else 0.0
        while True:
            self._intake.receive(wait)
            self._note_done()
            self._do_changes()
            if slot >= self._instances:
                return None
            if self._at_rest is not None and self._nothing_goes_on:
                self._at_rest()
            found = self._intake.take() if self._permits is None else self._permitted(self._permits)
            self._held = isinstance(found, float) and (found != math.inf or not self._intake.idle)
            if isinstance(found, Batch):
                return found
            wait = wait_of(found)

    def _permitted(self, permits: Permits) -> Batch[Asked] | float:
        """As `Intake.take`, of what may be computed."""
        intake = self._intake
        found = intake.look()
        if isinstance(found, float):
            permits.give_back()
            return found
        if permits.claim(frozenset([name for each in found for name in each.request.within])):
            return intake.take()
        if (why := permits.stuck()) is not None:
            for each in found:
                if each.request.within:
                    intake.refuse(each, InferenceError(why))
            return 0.0
        return intake.patience

    def _note_done(self) -> None:
        while self._done:
            self._intake.note_done(*self._done.popleft())

    @property
    def _nothing_goes_on(self) -> bool:
        return self._intake.at_rest

    def _compute(self, slot: int, batch: Batch[Asked], began: float) -> None:
        answers = self._computation.compute([each.request.task for each in batch.requests])
        seconds = time.monotonic() - began
        self._running.end(slot)
        send_answers(batch, answers, began, seconds)

    def _stream(self, slot: int, batch: Batch[Asked], began: float) -> None:
        """Send what comes as it comes. What frontends want is heard in between: one may want no more of this."""
        [waiting] = batch.requests
        asked = waiting.request
        error: InferenceError | None = None
        results = self._computation.stream(asked.task)
        try:
            try:
                for answer in results:
                    asked.peer.send(Output(asked.number, answer.parts, answer.media_type, False), answer.buffers)
                    self._watch.begin(slot, time.monotonic())
                    self._listen()
                    if asked.left:
                        break
            finally:
                close: Callable[[], None] | None = getattr(results, "close", None)
                if close is not None:
                    close()
        except InferenceError as found:
            error = found
        timing = timing_of(waiting, began, time.monotonic() - began, 1, lead=True)
        end: Reply = Ended(asked.number, timing) if error is None else failed(asked.number, error, timing)
        self._running.end(slot)
        asked.peer.send(end)

    def _listen(self) -> None:
        """Take what frontends have sent, unless another thread does."""
        with contextlib.ExitStack() as held:
            if self._receiving.acquire(blocking=False):
                held.callback(self._receiving.release)
                self._intake.receive(0.0)
