"""A frontend's end of an engine: supervises the process, and keeps the ledger from which lost work resumes.

The ledger holds, for every live request, the prompt ids, the parameters and the tokens received so far. When the engine
dies it is started again and gets every request anew together with those tokens; determinism makes the streams go on
token for token (design: a request's tokens depend on nothing but itself).
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from octavo.engine.config import EngineConfig, ModelInfo
from octavo.engine.engine import EngineStats
from octavo.engine.request import FinishReason, Output, Request, RequestRefused
from octavo.engine.wire import (
    Abort,
    Failed,
    Hello,
    Loading,
    Ready,
    Refused,
    StepDone,
    Submit,
    ToEngine,
    ToFrontend,
    decode_for_frontend,
    encode,
)
from octavo.errors import OctavoError

log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""A request that was being computed each time the engine died is given up after so many deaths."""

MAX_RESTARTS = 5
"""An engine that dies so often in a row without completing a step is given up."""


class EngineState(StrEnum):
    """What an engine can do for a request now."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineUnavailable(OctavoError):
    """The engine takes no requests at the moment; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(OctavoError):
    """The engine could not finish a request it had taken."""


class OutputStream(AsyncIterator[list[Output]]):
    """What the engine produces for one request: one list per engine step. Also the request's entry in the ledger.

    Raises from iteration:
        RequestRefused: the engine does not take the request; nothing was produced.
        EngineFailed: the engine was lost and could not be brought back, or breaks on this request.
    """

    def __init__(self, client: "EngineClient", request: Request) -> None:
        self.request = request
        self.outputs: dict[int, list[int]] = {index: [] for index in range(request.params.n)}
        self.finished: set[int] = set()
        self.losses = 0
        self.submitted = False
        self.in_engine = False
        self._client = client
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
        self._client.send_abort(self, None if ended == remaining else index)
        if ended == remaining:
            self.close()

    def deliver(self, outputs: list[Output]) -> None:
        """Note and pass on what a step produced; choices that were aborted meanwhile are dropped."""
        kept = [output for output in outputs if output.index not in self.finished]
        for output in kept:
            self.outputs[output.index] += output.token_ids
            if output.finish_reason is not None:
                self.finished.add(output.index)
        if kept:
            self.losses = 0
            self._items.put_nowait(kept)
        if len(self.finished) == len(self.outputs):
            self.close()

    def close(self, error: Exception | None = None) -> None:
        """End the stream, with an error if there is one, and strike it from the ledger."""
        self.finished = set(self.outputs)
        self._client.strike(self)
        self._items.put_nowait(error)

    def resumption(self) -> Request:
        """The request as an engine must see it to go on where the stream stands."""
        outputs = {index: tokens for index, tokens in self.outputs.items() if index not in self.finished}
        return replace(self.request, outputs=outputs, finished=sorted(self.finished), resumed=self.submitted)


class EngineClient:
    """One engine as a frontend sees it.

    Args:
        config: passed to the engine process.
        stall_timeout: seconds without a word from an engine that has work, after which it counts as stalled.
    """

    def __init__(self, config: EngineConfig, *, stall_timeout: float = 60.0) -> None:
        self.state = EngineState.LOADING
        self.failure: str | None = None
        self.info: ModelInfo | None = None
        self.stats = EngineStats()
        self.load_progress = (0, 0)
        self.restarts = 0
        self.ledger: dict[str, OutputStream] = {}
        self._config = config
        self._stall_timeout = stall_timeout
        self._last_word = time.monotonic()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = False
        self._settled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stalled(self) -> bool:
        """Whether the engine has work and has not been heard of for too long."""
        silent = time.monotonic() - self._last_word
        return self.state is EngineState.READY and bool(self.ledger) and silent > self._stall_timeout

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine process and supervise it. Returns at once."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

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

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Let live requests end, at most so long, abort the rest and end the engine process."""
        if drain_seconds > 0:
            await self.drain(drain_seconds)
        self._stopping = True
        self.state = EngineState.STOPPED
        for stream in list(self.ledger.values()):
            stream.close(EngineFailed("the server is shutting down"))
        if self._process is not None:
            await self._end(self._process)
        if self._supervisor is not None:
            await self._supervisor
        self._settled.set()

    async def _supervise(self) -> None:
        """Run engine processes, one after the other, until stopped or until it makes no sense any more."""
        while True:
            try:
                folder = _socket_folder()
                try:
                    status = await self._run_process(f"ipc://{folder}/engine")
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
            except Exception as error:  # no disk, no descriptors, no memory for a process
                log.exception("cannot start the engine")
                self._give_up(f"the engine cannot be started: {error}")
                return
            self.stats = EngineStats()
            if self._stopping:
                return
            if self.state is EngineState.LOADING:
                self._give_up(self.failure or f"the engine ended with status {status} while loading the model")
                return
            self.restarts += 1
            if self.failure is not None or self.restarts > MAX_RESTARTS:
                self._give_up(self.failure or f"the engine died {self.restarts} times in a row (status {status})")
                return
            log.error("the engine died with status %s; restarting it with %d live requests", status, len(self.ledger))
            self.state = EngineState.RESTARTING
            self._note_losses()

    async def _run_process(self, address: str) -> int:
        """Start a process, talk to it until it ends, and return its exit status."""
        command = (sys.executable, "-m", "octavo.engine.process", address)
        # Backends have threads of their own; those of a BLAS contend with them, and their number changes the last bits.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, start_new_session=True, env=environment
        )
        assert process.stdin is not None
        with contextlib.suppress(RuntimeError, OSError):  # it has died already; waiting for it tells how
            process.stdin.write(msgspec.json.encode(self._config) + b"\n")
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.connect(address)
        self._send(Hello())
        receiver = asyncio.create_task(self._receive(self._socket), name="engine-receiver")
        ended = asyncio.create_task(process.wait())
        try:
            if self._stopping:
                await self._end(process)
            await asyncio.wait({receiver, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():  # the receiver broke, which is a defect of ours: say so, and start afresh
                log.error("cannot read the engine's messages", exc_info=receiver.exception())
                process.kill()
            status = await ended
            # What it said last (why it failed) may still be on its way.
            await asyncio.wait([receiver], timeout=0.2)
            return status
        finally:
            receiver.cancel()
            self._socket.close(linger=0)
            self._socket = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End a process by ending its standard input, or, when it does not heed that, by force."""
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()

    def _note_losses(self) -> None:
        for stream in list(self.ledger.values()):
            if stream.in_engine:
                stream.in_engine = False
                stream.losses += 1
                if stream.losses >= MAX_LOSSES:
                    stream.close(EngineFailed(f"the engine died {stream.losses} times while computing this request"))

    def _give_up(self, why: str) -> None:
        if self.state is not EngineState.LOADING:  # then `ready` says it
            log.error("%s", why)
        self.state = EngineState.FAILED
        self.failure = why
        for stream in list(self.ledger.values()):
            stream.close(EngineFailed(why))
        self._settled.set()

    # --- messages -------------------------------------------------------------------------------------------------

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
        if not self.ledger:
            self._last_word = time.monotonic()
        stream = self.ledger[request.request_id] = OutputStream(self, request)
        self._idle.clear()
        if self.state is EngineState.READY:
            self._send_request(stream)
        return stream

    def strike(self, stream: OutputStream) -> None:
        """Take an ended stream out of the ledger."""
        self.ledger.pop(stream.request.request_id, None)
        if not self.ledger:
            self._idle.set()
        elif stream.losses and self.state is EngineState.READY:
            self._resubmit()

    def send_abort(self, stream: OutputStream, index: int | None) -> None:
        """Tell the engine; `OutputStream.abort` is the public way."""
        if stream.in_engine:
            self._send(Abort(stream.request.request_id, index))

    def _send_request(self, stream: OutputStream) -> None:
        self._send(Submit(stream.resumption()))
        stream.submitted = stream.in_engine = True

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:  # with no high-water mark a send never waits
            self._socket.send(encode(message))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            message = decode_for_frontend(await socket.recv())
            self._last_word = time.monotonic()
            self._handle(message)

    def _handle(self, message: ToFrontend) -> None:
        match message:
            case StepDone(outputs, stats):
                self.stats = stats
                if outputs:
                    self.restarts = 0
                    self._deliver(outputs)
            case Loading(done, total):
                self.load_progress = (done, total)
            case Ready(info):
                self.info = info
                # An engine that takes this one's place must hold as much, or requests could not be resumed.
                self._config = replace(
                    self._config, kv_cache_memory_bytes=info.kv_cache_bytes, max_model_len=info.max_model_len
                )
                self.state = EngineState.READY
                self._settled.set()
                self._resubmit()
            case Refused(request_id, kind, text, retry_after):
                stream = self.ledger.get(request_id)
                if stream is not None:
                    stream.close(RequestRefused(kind, text, retry_after))
            case Failed(text):
                self.failure = text

    def _deliver(self, outputs: list[Output]) -> None:
        """Pass a step's outputs on, one item per stream."""
        by_request: dict[str, list[Output]] = {}
        for output in outputs:
            by_request.setdefault(output.request_id, []).append(output)
        suspects = False
        for request_id, own in by_request.items():
            stream = self.ledger.get(request_id)
            if stream is None:
                continue
            suspects = suspects or stream.losses > 0
            error = next((output.error for output in own if output.finish_reason is FinishReason.ERROR), None)
            if error is not None:
                self._send(Abort(request_id))
                stream.close(EngineFailed(error))
            else:
                stream.deliver(own)
        if suspects:
            self._resubmit()

    def _resubmit(self) -> None:
        """Send every request the engine does not have.

        Requests that were there at two deaths in a row go one at a time, the next when the one before has produced
        something: so the one that kills the engine is found, and the others survive it.
        """
        suspects = [stream for stream in self.ledger.values() if stream.losses >= MAX_LOSSES - 1]
        for stream in list(self.ledger.values()):
            if not stream.in_engine and stream not in suspects:
                self._send_request(stream)
        if suspects and not any(stream.in_engine for stream in suspects):
            self._send_request(suspects[0])


def _socket_folder() -> Path:
    """A new folder that only this user can enter, with a path that leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-"))
    if len(str(folder)) <= 80:  # a Unix socket's path has at most 107 bytes, on some systems 103
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="octavo-", dir="/tmp"))
