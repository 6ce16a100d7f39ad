"""What a model asks of other models, and of the server: `InferenceRequest.exec` and `async_exec`.

A frontend does it. While a thread waits for what comes of it, it hears what frontends say, unless another one does.
"""

import asyncio
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from msgspec.structs import replace

from octavo.hosting.endpoint import Peer
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.tensors import Buffer, Place, from_bytes
from octavo.hosting.triton.python_backend.errors import TritonError, TritonModelException
from octavo.hosting.triton.python_backend.listening import Listening
from octavo.hosting.triton.python_backend.request import InferenceRequest
from octavo.hosting.triton.python_backend.response import InferenceResponse
from octavo.hosting.triton.python_backend.tensor import Tensor
from octavo.hosting.wire import (
    LOAD,
    READY,
    UNLOAD,
    Answered,
    Ask,
    Forget,
    Manage,
    Managed,
    Part,
    Refused,
    Reply,
)

GONE = "the server's process that was asked has ended"
MOST_WAITING = 256
"""Threads that wait for `async_exec` in event loops of the model's own."""


class Here(Protocol):
    """Where a model asks from."""

    def waits(self) -> bool:
        """Whether its process does nothing else before the thread that asks has gone on."""
        ...

    def is_own_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is where its asynchronous `execute` runs, while another thread hears frontends."""
        ...

    def within(self) -> tuple[str, ...]:
        """The processes that wait for what is computed now."""
        ...

    def path(self) -> tuple[str, ...]:
        """The ensembles of somebody's own code that have asked for what is computed now."""
        ...


class Call:
    """Something that has been asked.

    Attributes:
        responses: that have come. last: whether no other will. on_response: called when one has come.
    """

    def __init__(self, number: int, peer: Peer) -> None:
        self.number = number
        self.peer = peer
        self.responses: deque[InferenceResponse] = deque()
        self.managed: Managed | None = None
        self.last = False
        self.on_response: Callable[[], None] | None = None

    @property
    def has_response(self) -> bool:
        """Whether one has come."""
        return bool(self.responses)

    def put(self, response: InferenceResponse, *, last: bool) -> None:
        """One has come."""
        self.last = last
        self.responses.append(response)
        if self.on_response is not None:
            self.on_response()


class Calls:
    """What a model has asked for.

    Args:
        peers: the frontends, that whose request is computed first.
    """

    def __init__(self, listening: Listening, here: Here, peers: Callable[[], Sequence[Peer]]) -> None:
        self._listening = listening
        self._here = here
        self._peers = peers
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(MOST_WAITING, "async_exec")

    # --- other models -------------------------------------------------------------------------------------------------

    def execute(self, request: InferenceRequest, *, decoupled: bool) -> Any:
        """See `InferenceRequest.exec`."""
        return self._wait(self._ask(request, decoupled, self._here.waits()), decoupled)

    def execute_async(self, request: InferenceRequest, *, decoupled: bool) -> "asyncio.Future[Any]":
        """See `InferenceRequest.async_exec`."""
        loop = asyncio.get_running_loop()
        call = self._ask(request, decoupled, self._here.waits())
        if not self._here.is_own_loop(loop):
            return loop.run_in_executor(self._threads, self._wait, call, decoupled)
        future: asyncio.Future[Any] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(self._result(call, decoupled))

        def end(done: "asyncio.Future[Any]") -> None:
            call.on_response = None  # or what has come would be held by a cycle, and its block lent, for long
            if done.cancelled():
                self.forget(call)

        future.add_done_callback(end)

        def come() -> None:
            loop.call_soon_threadsafe(settle)

        call.on_response = come
        if call.has_response:
            settle()
        return future

    def _ask(self, request: InferenceRequest, many: bool, waits: bool) -> Call:
        parts, buffers = [], []
        for each in request.inputs():
            part, data = each.to_part(each.array)
            parts.append(part)
            buffers.append(data)
        details = replace(request.details, within=self._here.within(), path=self._here.path())
        call = self._begin()
        ask = Ask(
            call.number,
            request.model_name(),
            request.model_version(),
            tuple(parts),
            tuple(sorted(request.requested_output_names())),
            request.timeout() / 1e6,
            details,
            many,
            waits,
        )
        self._send(call, ask, buffers)
        return call

    def _wait(self, call: Call, decoupled: bool) -> Any:
        self._listening.wait(lambda: call.has_response)
        return self._result(call, decoupled)

    def _result(self, call: Call, decoupled: bool) -> Any:
        return ResponseIterator(call, self._listening, self.forget) if decoupled else call.responses[0]

    # --- the server ---------------------------------------------------------------------------------------------------

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether another model can be asked."""
        return self._manage(Manage(0, READY, name, version), ()).ready

    def load_model(self, name: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load a model of the repository. Raises TritonModelException."""
        sizes = tuple((file, len(data)) for file, data in files.items())
        managed = self._manage(Manage(0, LOAD, name, "", config, sizes), tuple(files.values()))
        if managed.error:
            raise TritonModelException(f"Failed to load model: {managed.error}")

    def unload_model(self, name: str, *, unload_dependents: bool) -> None:
        """Unload a model. Raises TritonModelException."""
        managed = self._manage(Manage(0, UNLOAD, name, dependents=unload_dependents), ())
        if managed.error:
            raise TritonModelException(f"Failed to unload model: {managed.error}")

    def _manage(self, message: Manage, buffers: Sequence[Buffer]) -> Managed:
        call = self._begin()
        self._send(call, replace(message, call=call.number), buffers)
        self._listening.wait(lambda: call.managed is not None)
        assert call.managed is not None
        return call.managed

    # --- what frontends say -------------------------------------------------------------------------------------------

    def on_message(self, message: Answered | Refused | Managed, data: memoryview) -> None:
        """Something has come of a call."""
        call = self._calls.get(message.call)
        if call is None:
            return
        if isinstance(message, Managed):
            call.managed = message
        elif isinstance(message, Refused):
            self._refuse(call, InferenceError(message.message, Code(message.code)))
        else:
            call.put(_response(message, data), last=message.last)
        if call.last or call.managed is not None:
            self._calls.pop(call.number, None)
        self._listening.tell()

    def on_left(self, peer: Peer) -> None:
        """A frontend has ended."""
        for call in [each for each in self._calls.values() if each.peer is peer]:
            del self._calls[call.number]
            call.managed = Managed(call.number, error=GONE)
            self._refuse(call, InferenceError(GONE, Code.UNAVAILABLE))
        self._listening.tell()

    def forget(self, call: Call) -> None:
        """Nobody waits for what comes of a call any more."""
        if call.number in self._calls:
            call.peer.send(Forget(call.number))

    def _refuse(self, call: Call, error: InferenceError) -> None:
        call.put(InferenceResponse(error=TritonError.of(error)), last=True)

    def _begin(self) -> Call:
        if os.getpid() != self._process:
            raise TritonModelException("a process that a model has forked cannot ask models; its threads can")
        peers = self._peers()
        if not peers:
            raise TritonModelException("no model can be asked: the server's processes have ended")
        return Call(next(self._numbers), peers[0])

    def _send(self, call: Call, message: Reply, buffers: Sequence[Buffer]) -> None:
        self._calls[call.number] = call
        call.peer.send(message, buffers)


class ResponseIterator:
    """The responses of a model that may have any number of them. When it is at its end it can be gone through again."""

    def __init__(self, call: Call, listening: Listening, forget: Callable[[Call], None]) -> None:
        self._call = call
        self._listening = listening
        self._forget = forget
        self._seen: list[InferenceResponse] = []
        self._at = 0
        self._taking = threading.Lock()

    def __iter__(self) -> "ResponseIterator":
        if self._is_finished and self._at >= len(self._seen):
            self._at = 0
        return self

    def __next__(self) -> InferenceResponse:
        with self._taking:
            if self._at == len(self._seen):
                if self._is_finished:
                    raise StopIteration
                self._listening.wait(lambda: self._call.has_response)
                self._seen.append(self._call.responses.popleft())
            self._at += 1
            return self._seen[self._at - 1]

    @property
    def _is_finished(self) -> bool:
        return self._call.last and not self._call.responses

    def cancel(self) -> None:
        """Ask for no more: the last response is an error then, unless the model had ended."""
        if not self._is_finished:
            self._forget(self._call)

    def __del__(self) -> None:
        self.cancel()


def _response(message: Answered, data: memoryview) -> InferenceResponse:
    """What has come, in arrays that share its memory."""
    if data.readonly:
        data = memoryview(bytearray(data))
    response = InferenceResponse(_tensors(message.parts, data))
    response.add_parameters(message.parameters)
    return response


def _tensors(parts: Sequence[Part], data: memoryview) -> list[Tensor]:
    tensors, at = [], 0
    for part in parts:
        array = from_bytes(part.datatype, part.shape, data[at : at + part.size], Place(part.name, "")).array
        tensors.append(Tensor.of(part.name, part.datatype, array))
        at += part.size
    return tensors
