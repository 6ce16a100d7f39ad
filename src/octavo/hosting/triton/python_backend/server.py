"""The loop of a Python model's process: as that of others, for requests that may go on when `execute` has returned."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from octavo.hosting.batcher import Batch
from octavo.hosting.computation import Answer
from octavo.hosting.endpoint import Endpoint, Peer
from octavo.hosting.errors import InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.intake import Asked, Intake, send_answers
from octavo.hosting.lanes import SequenceBatch, Turn
from octavo.hosting.permits import Permits
from octavo.hosting.queue import Waiting
from octavo.hosting.running import Running
from octavo.hosting.server import ModelServer
from octavo.hosting.triton.python_backend.calls import Calls
from octavo.hosting.triton.python_backend.computation import PythonComputation, Result
from octavo.hosting.triton.python_backend.host import here
from octavo.hosting.triton.python_backend.listening import Listening
from octavo.hosting.triton.python_backend.metrics import registry
from octavo.hosting.triton.python_backend.open_requests import Begun, OpenRequest
from octavo.hosting.triton.python_backend.request import RELEASE_ALL, RELEASE_RESCHEDULE, IncomingRequest
from octavo.hosting.triton.python_backend.response import InferenceResponse
from octavo.hosting.wire import Answered, Figures, Managed, Probe, Probed, Refused, Request

MOST_OPEN = 1024
"""Requests that have not had their last response when `execute` has returned; others wait meanwhile."""


class PythonServer(ModelServer):
    """Serves one instance of a model.

    Attributes:
        decoupled: whether requests may have any number of responses. listening: who hears what frontends say.
    """

    def __init__(
        self,
        computation: PythonComputation,
        info: HostedInfo,
        endpoint: Endpoint,
        running: Running,
        permits: Permits | None = None,
    ) -> None:
        super().__init__(computation, info, endpoint, running, 1, permits)
        self.decoupled = computation.decoupled
        self.listening = Listening(endpoint)
        self._receiving = self.listening  # type: ignore[assignment]
        self._python = computation
        self._serve_batch = self._execute
        self._open: dict[int, OpenRequest] = {}
        self._changing = threading.Lock()
        self._free = list(range(1, slots_of(info)))
        self._intake: PythonIntake = PythonIntake(endpoint, computation, info, self._open)
        self._again: list[tuple[Waiting[Asked], IncomingRequest]] = []
        self._told: set[Peer] = set()
        self.listening.receive = self._intake.receive
        self._main = threading.get_ident()
        self._computing: Sequence[IncomingRequest] = ()
        self._last_peer: Peer | None = None
        calls = Calls(self.listening, self, self._peers)
        self._intake.calls = calls
        here.host = calls
        computation.wait_with(self._wait)
        registry.on_change = endpoint.wake
        self._readiness = ThreadPoolExecutor(1, "readiness") if info.probes else None
        self._intake.on_probe = self._probe

    def run(self) -> None:
        """Serve for ever."""
        if self._readiness is not None:  # which is asked for also while a batch is computed
            threading.Thread(target=self.listening.wait, args=(lambda: False,), name="listener", daemon=True).start()
        super().run()

    def _probe(self, peer: Peer, probe: Probe) -> None:
        assert self._readiness is not None
        self._readiness.submit(lambda: peer.send(Probed(probe.call, self._python.is_ready())))

    def _next(self, slot: int) -> Batch[Asked] | None:
        while len(self._open) >= MOST_OPEN:
            if self._permits is not None:
                self._permits.settle()
            self._intake.receive(None)
        return super()._next(slot)

    @property
    def _nothing_goes_on(self) -> bool:
        return not self._open and super()._nothing_goes_on

    def _note_done(self) -> None:
        for waiting, _ in self._again:
            self._intake.keep(waiting)
        super()._note_done()
        while self._again:
            self._intake.push_again(*self._again.pop(0))
        if registry.used and (registry.changed or not self._endpoint.peers <= self._told):
            self._tell_figures()

    def _wait(self, future: "Future[Any]") -> None:
        """Wait for code in the model's event loop, and hear frontends meanwhile."""
        future.add_done_callback(lambda _: self.listening.notify())
        self.listening.wait(future.done)

    # --- what a model asks for ----------------------------------------------------------------------------------------

    def waits(self) -> bool:
        """Whether the batch that is computed goes on only with the thread that asks this, as far as that is known."""
        return bool(self._computing) and (threading.get_ident() == self._main or not self.decoupled)

    def is_own_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is where its asynchronous `execute` runs."""
        return self._python.runs_in(loop)

    def within(self) -> tuple[str, ...]:
        """The processes that wait for what is computed now."""
        return tuple({name for each in self._computing for name in each.details.within})

    def path(self) -> tuple[str, ...]:
        """The ensembles of somebody's own code that have asked for what is computed now."""
        return tuple(dict.fromkeys(name for each in self._computing for name in each.details.path))

    def _peers(self) -> list[Peer]:
        """The frontends, that first whose request is computed, or was the last."""
        peers = list(self._endpoint.peers)
        return sorted(peers, key=lambda each: each is not self._last_peer)

    # --- a batch ------------------------------------------------------------------------------------------------------

    def _execute(self, slot: int, batch: Batch[Asked], began: float) -> None:
        requests: list[IncomingRequest] = []
        for waiting in batch.requests:
            request: IncomingRequest = waiting.request.task.content
            if request.find is None:
                begun = Begun(began, batch.items, not requests)
                request.find = partial(OpenRequest, self, waiting, request.names, begun)
            requests.append(request)
        self._last_peer, self._computing = batch.requests[0].request.peer, requests
        if isinstance(batch, SequenceBatch):
            results = self._python.execute_sequences(requests, [each.request.task for each in batch.requests])
        else:
            results = self._python.execute(requests)
        self._computing = ()
        seconds = time.monotonic() - began
        if self._open or None in results:
            self._settle(batch, requests, results)
            self._running.end(slot)
        else:
            self._running.end(slot)
            send_answers(batch, results, began, seconds)  # type: ignore[arg-type]

    def _settle(self, batch: Batch[Asked], requests: Sequence[IncomingRequest], results: Sequence[Result]) -> None:
        """Answer what is to be answered now, and note what is not."""
        for waiting, request, result in zip(batch.requests, requests, results, strict=True):
            origin = request.origin
            assert isinstance(origin, OpenRequest)
            if result is not None:
                if request.response_sender is not None:
                    request.response_sender.close()
                origin.answer(result)
            elif request.release == RELEASE_RESCHEDULE and not origin.has_ended:
                request.release = RELEASE_ALL
                self._again.append((waiting, request))
            elif request.response_sender is None:
                origin.finish()
        with self._changing:
            for number, each in self._open.items():
                if each.slot is None:
                    each.slot = self._free.pop()
                    self._running.begin(each.slot, [number], time.monotonic())

    def answer_of(self, origin: OpenRequest, response: InferenceResponse) -> Answer | InferenceError:
        """A response as it is sent."""
        return self._python.answer(origin.names, response)

    # --- requests that go on ------------------------------------------------------------------------------------------

    def open(self, origin: OpenRequest) -> None:
        """A request may go on when `execute` returns. Any thread may say so, and the next."""
        with self._changing:
            self._open[origin.asked.number] = origin

    def close(self, origin: OpenRequest) -> None:
        """It has had its last response."""
        with self._changing:
            full = len(self._open) >= MOST_OPEN
            if self._open.pop(origin.asked.number, None) is None:
                return
            if origin.slot is not None:
                self._running.end(origin.slot)
                self._free.append(origin.slot)
        if full or self._at_rest is not None:
            self._endpoint.wake()

    def _tell_figures(self) -> None:
        figures = Figures(registry.collect())
        self._told = set(self._endpoint.peers)
        for peer in self._told:
            peer.send(figures)


class PythonIntake(Intake):
    """What frontends have asked for, also what is no batch's any more.

    Args:
        going_on: requests that are no batch's any more, by number.
    """

    def __init__(
        self, endpoint: Endpoint, computation: PythonComputation, info: HostedInfo, going_on: dict[int, OpenRequest]
    ) -> None:
        super().__init__(endpoint, computation, info, 1)
        self._open = going_on
        self.calls: Calls | None = None
        self.on_probe: Callable[[Peer, Probe], None] = lambda peer, probe: None

    def keep(self, waiting: Waiting[Asked]) -> None:
        """A request is to be computed again, before it is said that its batch is done: its sequence goes on."""
        if self._sequences is not None and isinstance(waiting, Turn):
            self._sequences.again(waiting, time.monotonic())

    def push_again(self, waiting: Waiting[Asked], request: IncomingRequest) -> None:
        """A request is to be computed again, with others."""
        asked = waiting.request
        asked.task.content = request
        if isinstance(waiting, Turn):
            self._asked[asked.number] = waiting
            return
        try:
            self._asked[asked.number] = self._batcher.push(
                asked, items=asked.task.items, kind=asked.task.kind, now=time.monotonic(), priority=waiting.level
            )
        except InferenceError as error:
            request.origin.fail(error)

    def _hear(self, peer: Peer, message: Request, data: memoryview) -> None:
        if isinstance(message, Probe):
            self.on_probe(peer, message)
        elif isinstance(message, Answered | Refused | Managed) and self.calls is not None:
            self.calls.on_message(message, data)

    def _leave(self, peer: Peer) -> list[Asked]:
        if self.calls is not None:
            self.calls.on_left(peer)
        for each in tuple(self._open.values()):
            if each.asked.peer is peer:
                each.asked.left = True
        return super()._leave(peer)

    def _cancel(self, number: int) -> list[Asked]:
        waits = number in self._asked
        left = super()._cancel(number)
        going_on = self._open.get(number)
        if going_on is not None:
            going_on.asked.left = True
            if waits and number not in self._asked:  # it was to be computed again
                going_on.finish()
        return left


def slots_of(info: HostedInfo) -> int:
    """Batches and requests that may be computed at the same time: see `Running`."""
    return 1 + MOST_OPEN + (info.max_batch_size or 1)
