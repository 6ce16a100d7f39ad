"""A frontend's end of an engine: what it is asked for, and what comes back, whichever process computes it."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from octavo.engine.config import ModelInfo
from octavo.engine.request import FinishReason, Output, Refusal, Request, RequestRefused
from octavo.engine.stats import EngineStats
from octavo.engine.stream import EngineFailed, EngineStopped, EngineUnavailable, OutputStream
from octavo.engine.wire import (
    Abort,
    Accepted,
    Learn,
    Refused,
    Stats,
    StepDone,
    Submit,
    ToEngine,
    decode_for_frontend,
    encode,
)
from octavo.grammar.vocabulary import Vocabulary
from octavo.worker.channel import LEASE_SECONDS, Channel
from octavo.worker.control import NOTHING, WorkerState, WorkerStatus
from octavo.worker.ledger import Ledger

__all__ = ["EngineClient", "EngineFailed", "EngineState", "EngineStopped", "EngineUnavailable", "OutputStream"]

EngineState = WorkerState


class EngineClient:
    """One engine as a frontend sees it.

    `vocabulary` gives the model's tokens, which an engine must know that is to follow a grammar.

    Its ledger holds, for every live request, the prompt ids, the parameters and the tokens received so far. When the
    engine dies its heir gets every request anew together with those tokens; determinism makes the streams go on token
    for token (design: a request's tokens depend on nothing but itself).

    Args:
        stall_timeout: seconds without a word from an engine that has work, after which it counts as stalled.
        lease_seconds: silence of this process after which the engine may drop its requests.
        on_culprit: called when a request was found that kills the engine, and has been failed.
    """

    def __init__(
        self,
        *,
        stall_timeout: float = 60.0,
        lease_seconds: float = LEASE_SECONDS,
        on_culprit: Callable[[], None] | None = None,
    ) -> None:
        self.state = EngineState.LOADING
        self.failure: str | None = None
        self.info: ModelInfo | None = None
        self.stats = EngineStats()
        self.load_progress = (0, 0)
        self.restarts = 0
        self.vocabulary: Callable[[], Vocabulary] | None = None
        self._knows_vocabulary = False
        self.ledger: Ledger[OutputStream] = Ledger()
        self._stall_timeout = stall_timeout
        self._lease_seconds = lease_seconds
        self._on_culprit = on_culprit
        self._last_idle = time.monotonic()
        self._restart_began = time.monotonic()
        self._restart_seconds = 1.0
        self._channel: Channel | None = None
        self._settled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stalled(self) -> bool:
        """Whether the engine has work and has not been heard of for too long."""
        if self._channel is None or not self.ledger:
            return False
        return time.monotonic() - max(self._channel.last_heard, self._last_idle) > self._stall_timeout

    async def ready(self) -> ModelInfo:
        """Wait until the engine takes requests.

        Raises:
            EngineFailed: it never will; the message says why.
        """
        await self._settled.wait()
        if self.info is None:
            raise EngineFailed(self.failure or "the engine was stopped")
        return self.info

    async def drain(self, seconds: float) -> None:
        """Wait until every live request has ended, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> OutputStream:
        """Take a request into the ledger and send it. Never blocks.

        Raises:
            EngineUnavailable: the engine is loading, failed or stopped.
        """
        match self.state:
            case EngineState.LOADING:
                raise EngineUnavailable("the model is loading", retry_after=2.0)
            case EngineState.FAILED:
                raise EngineUnavailable(f"the engine failed: {self.failure}")
            case EngineState.STOPPED:
                raise EngineUnavailable("the server is shutting down", retry_after=5.0)
        stream = OutputStream(self, request)
        refusal = self._refusal(request)
        if refusal is not None:
            stream.close(refusal)
            return stream
        if not self.ledger:
            self._last_idle = time.monotonic()
        self.ledger.add(request.request_id, stream)
        self._idle.clear()
        self._send_due()
        return stream

    def drop(self, stream: OutputStream) -> None:
        """Take a stream that has ended out of the ledger."""
        self.ledger.remove(stream.request.request_id)
        if not self.ledger:
            self._idle.set()
        self._send_due()

    def send_abort(self, stream: OutputStream, index: int | None) -> None:
        """Tell the engine; `OutputStream.abort` is the public way."""
        if stream.in_worker:
            self._send(Abort(stream.request.request_id, index))

    def _refusal(self, request: Request) -> RequestRefused | None:
        """The engine's own bounds, for requests that have to wait for it here."""
        if self._can_send and self.ledger.takes_all:
            return None
        assert self.info is not None
        waiting = [stream for stream in self.ledger.outside() if not stream.submitted]
        choices = sum(len(stream.outputs) - len(stream.finished) for stream in self.ledger)
        tokens = sum(stream.request.params.n * len(stream.request.prompt_token_ids) for stream in waiting)
        n, length = request.params.n, len(request.prompt_token_ids)
        overflow = choices + n - self.info.max_num_seqs - self.info.max_num_queued_reqs
        if overflow <= 0 and (not waiting or tokens + n * length <= self.info.max_num_queued_tokens):
            return None
        return RequestRefused(
            Refusal.OVERLOADED,
            f"the engine is being restarted and the queue is full: {choices} choices run or wait, {tokens} tokens of "
            f"new ones among them, of at most {self.info.max_num_seqs + self.info.max_num_queued_reqs} choices and "
            f"{self.info.max_num_queued_tokens} tokens",
            retry_after=self._restart_seconds,
        )

    @property
    def _can_send(self) -> bool:
        return self._channel is not None and self._channel.is_open

    def _send(self, message: ToEngine) -> None:
        if self._channel is not None:
            self._channel.send(encode(message))

    def _send_due(self) -> None:
        if self._can_send and self.ledger.has_due:
            for stream in self.ledger.take():
                if stream.request.params.needs_vocabulary:
                    self._teach()
                self._send(Submit(stream.resumption()))
                stream.submitted = True

    def _teach(self) -> None:
        """Tell the engine the model's tokens, once."""
        if not self._knows_vocabulary:
            assert self.vocabulary is not None, "whoever sends what needs it knows the vocabulary"
            self._send(Learn(self.vocabulary()))
            self._knows_vocabulary = True

    # --- what the supervisor says ---------------------------------------------------------------------------------

    def update(self, status: WorkerStatus) -> None:
        """Learn where the engine's process stands."""
        previous, self.state = self.state, status.state
        self.failure, self.load_progress = status.failure, status.progress
        self.restarts = max(status.incarnation - 1, 0)
        if status.payload != NOTHING:
            self.info = msgspec.json.decode(status.payload, type=ModelInfo)
        if status.state is previous:
            return
        if previous is EngineState.READY:
            self._lose_channel()
        match status.state:
            case EngineState.READY:
                assert status.address is not None
                self._restart_seconds = max(time.monotonic() - self._restart_began, 1.0)
                self._channel = Channel(status.address, self, lease_seconds=self._lease_seconds)
                self._settled.set()
            case EngineState.RESTARTING:
                self._restart_began = time.monotonic()
                self._note_death()
            case EngineState.FAILED:
                self._end(EngineFailed(status.failure or "the engine failed"))
            case EngineState.STOPPED:
                self._end(EngineStopped("the server is shutting down"))

    def _lose_channel(self) -> None:
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        self.stats = EngineStats()

    def _note_death(self) -> None:
        culprit = self.ledger.note_death()
        if culprit is not None:
            deaths = len(culprit.deaths)
            culprit.close(EngineFailed(f"the engine died {deaths} times while computing this request"))
            if self._on_culprit is not None:
                self._on_culprit()

    def _end(self, error: EngineFailed) -> None:
        for stream in self.ledger:
            stream.close(error)
        self._settled.set()

    # --- what the channel says ------------------------------------------------------------------------------------

    def on_open(self) -> None:
        """The engine holds nothing of ours: send it what it is to compute."""
        self._knows_vocabulary = False
        self._send_due()

    def on_expired(self) -> None:
        """The engine dropped everything, though it lives."""
        self.ledger.recall()

    def on_defect(self) -> None:
        """A message of the engine's that we cannot handle is as bad as its death: find the request that is to blame."""
        self._note_death()

    def on_message(self, data: memoryview) -> None:
        """The engine sent something."""
        match decode_for_frontend(data):
            case StepDone(outputs):
                self._deliver(outputs)
            case Stats(stats):
                self.stats = stats
            case Accepted(request_ids):
                for request_id in request_ids:
                    stream = self.ledger.get(request_id)
                    if stream is not None:
                        stream.accepted.set()
            case Refused(request_id, kind, text, retry_after):
                stream = self.ledger.get(request_id)
                if stream is not None:
                    stream.close(RequestRefused(kind, text, retry_after))

    def _deliver(self, outputs: list[Output]) -> None:
        """Pass a step's outputs on, one item per stream."""
        by_request: dict[str, list[Output]] = {}
        for output in outputs:
            by_request.setdefault(output.request_id, []).append(output)
        for request_id, own in by_request.items():
            stream = self.ledger.get(request_id)
            if stream is None:
                continue
            lost = next((output for output in own if output.finish_reason is FinishReason.ERROR), None)
            if lost is not None:
                self._send(Abort(request_id))
                error = lost.error or "the engine failed on this request"
                stream.close(RequestRefused(Refusal.INVALID, error) if lost.refused else EngineFailed(error))
            else:
                self.ledger.note_step(request_id, stream)
                stream.deliver(own)
        self._send_due()
