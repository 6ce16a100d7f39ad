"""Requests that a Python model has in its hands: until their last response, from whatever thread that comes."""

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from octavo.hosting.computation import Answer
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.intake import Asked, failed, timing_of
from octavo.hosting.queue import Waiting
from octavo.hosting.tensors import Buffer
from octavo.hosting.triton.python_backend.response import InferenceResponse
from octavo.hosting.triton.python_backend.sender import InferenceResponseSender
from octavo.hosting.wire import Ended, Output, Reply, Timing

if TYPE_CHECKING:
    from octavo.hosting.triton.python_backend.server import PythonServer

NO_RESPONSE = "the model has let go of a request without a response"


class Begun(NamedTuple):
    """What is said of a batch.

    Attributes:
        began: `time.monotonic()`. items: of all. lead: whether a request stands for it where batches are counted.
    """

    began: float
    items: int
    lead: bool


class OpenRequest:
    """A request from the moment that its batch is begun. Where its responses go, and what its model asks of it.

    Args:
        waiting: with what the frontend waits for. names: of the outputs that are wanted.
        batch: what is said of its batch.

    Attributes:
        has_ended: whether its frontend has been told all.
        slot: where it is written that it is computed, once `execute` has returned.
    """

    __slots__ = ("_batch", "_sending", "_server", "_waiting", "has_ended", "names", "slot")

    def __init__(self, server: "PythonServer", waiting: Waiting[Asked], names: Collection[str], batch: "Begun") -> None:
        self._server = server
        self._waiting = waiting
        self._batch = batch
        self.names = names
        self._sending: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.has_ended = False
        self.slot: int | None = None

    @property
    def asked(self) -> Asked:
        """What the frontend waits for."""
        return self._waiting.request

    @property
    def timing(self) -> Timing:
        """How it was computed, if that was all."""
        began, items, lead = self._batch
        return timing_of(self._waiting, began, time.monotonic() - began, items, lead=lead)

    def is_cancelled(self) -> bool:
        """Whether its client has left."""
        self._server.listening.poll()
        return self.asked.left

    def sender(self) -> InferenceResponseSender:
        """What sends its responses."""
        self._sending = threading.Lock()
        self._server.open(self)
        return InferenceResponseSender(self, decoupled=self._server.decoupled)

    def send(self, response: InferenceResponse | None, *, final: bool) -> None:
        """Send a response, and say whether it was the last one."""
        if response is None:
            self.finish()
            return
        self.answer(self._server.answer_of(self, response), last=final or not self._server.decoupled)

    def answer(self, answer: Answer | InferenceError, *, last: bool = True) -> None:
        """Send an answer, and say whether it was the last one. An error is."""
        if isinstance(answer, InferenceError):
            self.fail(answer)
            return
        timing = self.timing if last else None
        output = Output(self.asked.number, answer.parts, "", last, timing, answer.parameters)
        self._tell(output, answer.buffers, ends=last)

    def fail(self, error: InferenceError) -> None:
        """There will be no response any more, and why."""
        self._tell(failed(self.asked.number, error, self.timing), (), ends=True)

    def finish(self) -> None:
        """There will be no response any more; of a model that answers each request, that is an error."""
        if self._server.decoupled:
            self._tell(Ended(self.asked.number, self.timing), (), ends=True)
        else:
            self.fail(InferenceError(NO_RESPONSE, Code.INTERNAL))

    def _tell(self, reply: Reply, buffers: Sequence[Buffer], *, ends: bool) -> None:
        """Tell the frontend, unless it has been told the end."""
        with self._sending:
            if self.has_ended:
                return
            self.has_ended = ends
            self.asked.peer.send(reply, buffers)
        if ends:
            self._server.close(self)
