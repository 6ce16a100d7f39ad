"""What an engine produces for one request, as a frontend reads it."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from octavo.engine.request import FinishReason, Output, Request
from octavo.errors import OctavoError
from octavo.worker.ledger import Entry


class EngineUnavailable(OctavoError):
    """The engine takes no requests at the moment; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(OctavoError):
    """The engine could not finish a request it had taken."""


class EngineStopped(EngineFailed):
    """The engine was stopped on purpose while it had the request."""


class StreamOwner(Protocol):
    """Where a stream comes from, and who learns what becomes of it."""

    def drop(self, stream: "OutputStream") -> None:
        """The stream has ended."""
        ...

    def send_abort(self, stream: "OutputStream", index: int | None) -> None:
        """One choice of the stream is not wanted any more, or (None) none of them."""
        ...


class OutputStream(Entry, AsyncIterator[list[Output]]):
    """What the engine produces for one request: one list per engine step. Also the request's entry in the ledger.

    Attributes:
        accepted: set once the engine has taken the request: it will not be refused any more.

    Raises from iteration:
        RequestRefused: the engine does not take the request; or what it asks for left nothing to draw on the way.
        EngineFailed: the engine was lost and could not be brought back, or breaks on this request.
        EngineStopped: it was ended on purpose.
    """

    def __init__(self, owner: StreamOwner, request: Request) -> None:
        super().__init__()
        self.request = request
        self.outputs = {index: array("i") for index in range(request.params.n)}
        self.finished: set[int] = set()
        self.submitted = False
        self.accepted = asyncio.Event()
        self._owner = owner
        self._items: asyncio.Queue[list[Output] | Exception | None] = asyncio.Queue()

    async def __anext__(self) -> list[Output]:
        item = await self._items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def abort(self, index: int | None = None) -> None:
        """End one choice, or all of them and the stream. Pages are free within a step. May be called at any time."""
        remaining = set(self.outputs) - self.finished
        ended = remaining if index is None else remaining & {index}
        if not ended:
            return
        self.finished |= ended
        self._owner.send_abort(self, None if ended == remaining else index)
        if ended == remaining:
            self.close()

    def expire(self) -> None:
        """End what has not ended with the tokens that are there. Pages are free within a step."""
        ended = sorted(set(self.outputs) - self.finished)
        if ended:
            self._owner.send_abort(self, None)
            request_id = self.request.request_id
            self.deliver([Output(request_id=request_id, index=n, finish_reason=FinishReason.TIMEOUT) for n in ended])

    def deliver(self, outputs: list[Output]) -> None:
        """Note and pass on what a step produced; choices that were aborted meanwhile are dropped."""
        kept = [output for output in outputs if output.index not in self.finished]
        for output in kept:
            tokens = self.outputs[output.index]
            if tokens and output.cached_tokens is not None:  # of a resumption; what it was at first has been told
                output.cached_tokens = output.queue_seconds = output.prefill_seconds = None
            tokens.extend(output.token_ids)
            if output.finish_reason is not None:
                self.finished.add(output.index)
        if kept:
            self._items.put_nowait(kept)
        if len(self.finished) == len(self.outputs):
            self.close()

    def close(self, error: Exception | None = None) -> None:
        """End the stream, with an error if there is one."""
        self.finished = set(self.outputs)
        self._owner.drop(self)
        self._items.put_nowait(error)

    def resumption(self) -> Request:
        """The request as an engine must see it to go on where the stream stands."""
        outputs = {index: tokens.tolist() for index, tokens in self.outputs.items() if index not in self.finished}
        return replace(self.request, outputs=outputs, finished=sorted(self.finished), resumed=self.submitted)
