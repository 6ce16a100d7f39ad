"""The loop of a hosted model's process whose code is asynchronous: batches are computed beside each other."""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from octavo.hosting.asking import Asking, AskingIntake
from octavo.hosting.batcher import Batch
from octavo.hosting.computation import Answer, Computation, Task
from octavo.hosting.endpoint import Endpoint
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.intake import Asked, Intake, failed, send_answers, timing_of
from octavo.hosting.running import Running
from octavo.hosting.steps import current
from octavo.hosting.watch import Watch
from octavo.hosting.wire import Ended, Output, Reply

log = logging.getLogger(__name__)

LET_GO_SECONDS = 5.0
"""For code to end that was told to."""


class AsyncComputation(Computation, Protocol):
    """A computation whose code is asynchronous."""

    async def acompute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """`compute`, in the running event loop."""
        ...

    def astream(self, task: Task) -> AsyncIterator[Answer]:
        """`stream`, in the running event loop."""
        ...


class AsyncModelServer:
    """Serves one model in the running event loop.

    Args:
        at_once: batches that are computed beside each other.
    """

    def __init__(
        self, computation: AsyncComputation, info: HostedInfo, endpoint: Endpoint, running: Running, at_once: int
    ) -> None:
        self._computation = computation
        self._endpoint = endpoint
        self._running = running
        self._info = info
        self._free = list(range(at_once))
        # Code that waits is ended alone; the process, when it holds the event loop.
        self._watch = Watch(info.execution_timeout and info.execution_timeout + LET_GO_SECONDS, at_once)
        self._asking = None if info.asks is None else Asking(info.name)
        if self._asking is None:
            self._intake = Intake(endpoint, computation, info, at_once)
        else:
            self._intake = AskingIntake(endpoint, computation, info, at_once, self._asking)
        self._tasks: dict[asyncio.Task[None], Batch[Asked]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve for ever."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._endpoint.fileno(), self._receive)
        await loop.create_future()

    def _receive(self) -> None:
        for asked in self._intake.receive(0.0):
            if self._asking is not None:
                self._asking.end(asked)
            for task, batch in self._tasks.items():
                if any(each.request is asked for each in batch.requests) and all(
                    each.request.left for each in batch.requests
                ):
                    task.cancel()
        if self._asking is not None:
            self._intake.give_back()  # what steps have answered, which may be long before the request has ended
        self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free:
            found = self._intake.take()
            if not isinstance(found, Batch):
                if found != math.inf:
                    self._timer = asyncio.get_running_loop().call_later(found, self._begin)
                return
            task = asyncio.create_task(self._serve(self._free.pop(), found))
            self._tasks[task] = found
            task.add_done_callback(self._tasks.pop)

    async def _serve(self, slot: int, batch: Batch[Asked]) -> None:
        work = self._stream if self._info.streams else self._compute
        began = time.monotonic()
        limit = asyncio.timeout(self._info.execution_timeout or None)
        why = ""
        self._running.begin(slot, [each.request.number for each in batch.requests], began)
        self._watch.begin(slot, began)
        if self._asking is not None:
            current.set(self._asking.begin(batch.requests[0].request))
        try:
            async with limit:
                await work(slot, batch, began, limit)
        except TimeoutError:
            why = f"the model failed: it did not return within {self._info.execution_timeout:g} s"
        except asyncio.CancelledError:  # by whoever asked and wants it no more, or by something within the code
            why = "the model failed: its code was cancelled"
        except BaseException:
            log.exception("a defect of Octavo; the process ends")
            os._exit(1)
        finally:
            if why and not all(each.request.left for each in batch.requests):
                error = InferenceError(why, Code.INTERNAL)
                send_answers(batch, [error] * len(batch.requests), began, time.monotonic() - began)
            self._watch.end(slot)
            self._running.end(slot)
            self._free.append(slot)
            self._intake.note_done(batch, time.monotonic() - began)
            for waiting in batch.requests:
                waiting.request.end()
                if self._asking is not None:
                    self._asking.end(waiting.request)
            self._intake.give_back()
        self._begin()

    async def _compute(self, slot: int, batch: Batch[Asked], began: float, limit: asyncio.Timeout) -> None:
        answers = await self._computation.acompute([each.request.task for each in batch.requests])
        send_answers(batch, answers, began, time.monotonic() - began)

    async def _stream(self, slot: int, batch: Batch[Asked], began: float, limit: asyncio.Timeout) -> None:
        [waiting] = batch.requests
        asked = waiting.request
        error: InferenceError | None = None
        try:
            async for answer in self._computation.astream(asked.task):
                asked.peer.send(Output(asked.number, answer.parts, answer.media_type, False), answer.buffers)
                self._watch.begin(slot, time.monotonic())
                if self._info.execution_timeout:
                    limit.reschedule(asyncio.get_running_loop().time() + self._info.execution_timeout)
                await asyncio.sleep(0)  # code that waits for nothing leaves nobody else a turn, nor can it be ended
        except InferenceError as found:
            error = found
        timing = timing_of(waiting, began, time.monotonic() - began, 1, lead=True)
        end: Reply = Ended(asked.number, timing) if error is None else failed(asked.number, error, timing)
        asked.peer.send(end)
