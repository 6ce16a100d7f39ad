"""A frontend's compiler of grammars: it finds out, before anything is asked of an engine, whether a grammar can be
followed.

Grammars come from clients, and a compiler is complicated: one may take for ever, all of the memory, or the process with
it. So another process compiles, which is ended at a deadline, and its verdicts are kept.
"""

from __future__ import annotations

import logging
import math
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import IO

import msgspec

from octavo.errors import OctavoError
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError, digest
from octavo.grammar.turns import NoTurn, Turns
from octavo.grammar.vocabulary import Vocabulary

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 5.0
"""For one grammar. Those of clients take milliseconds."""

OPENING_SECONDS = 120.0
"""For the process to start and take in the vocabulary."""

MAX_WAITING = 64
"""Grammars that may wait for their turn, divided by the tenants who have some."""

KEPT = 4096
"""Verdicts."""

SLOW_SECONDS = 60.0
"""So long a grammar counts as too slow that was."""

UNLOADING = "the model is being unloaded"

LENGTH_BYTES = 8
"""Before every message."""


class Job(msgspec.Struct):
    """A grammar for the process to compile; see `Constraint`. Its schemas are JSON."""

    source: str
    schemas: list[tuple[str, bytes]]
    parts: list[tuple[str, str]] = []


class Verdict(msgspec.Struct):
    """What came of it: None if it can be followed; else the path of what cannot, as far as that is known, and why."""

    error: str | None = None
    path: str | None = None


class NotCompiled(OctavoError):
    """A grammar that nobody has compiled yet, which takes a while.

    Attributes:
        begin: begins that, for a tenant; see `GrammarCompiler.compile`.
        timeout: seconds that the request may take which needs it; None for any.
    """

    def __init__(self, begin: Callable[[str], Future[Verdict]]) -> None:
        super().__init__("the grammar has not been compiled yet")
        self.begin = begin
        self.timeout: float | None = None


class GrammarBusy(OctavoError):
    """Too many grammars are waiting to be compiled."""


class GrammarCompiler:
    """Compiles the grammars of one model's requests, one after the other, the tenants' in turn. Thread-safe.

    Args:
        vocabulary: the model's tokens; called once, when they are needed.
        command: starts the process.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        command: tuple[str, ...] = (sys.executable, "-m", "octavo.grammar.process"),
    ) -> None:
        self._make_vocabulary = vocabulary
        self._command = command
        self._vocabulary: Vocabulary | None = None
        self._process: _Process | None = None
        self._verdicts: OrderedDict[bytes, tuple[Verdict, float]] = OrderedDict()
        self._pending: dict[tuple[bytes, str], Future[Verdict]] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._turns: Turns[Verdict] = Turns("octavo-grammars", MAX_WAITING)

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, which an engine must be told before it is asked to follow a grammar."""
        if self._vocabulary is None:
            self._vocabulary = self._make_vocabulary()
        return self._vocabulary

    def require(self, constraint: Constraint) -> None:
        """Make sure that a grammar can be followed.

        Raises:
            GrammarError: it cannot.
            NotCompiled: nobody knows yet.
        """
        key = digest(constraint.source)
        with self._lock:
            verdict, ends = self._verdicts.get(key, (None, 0.0))
            if verdict is None or time.monotonic() > ends:
                raise NotCompiled(partial(self.compile, constraint))
            self._verdicts.move_to_end(key)
        if verdict.error is not None:
            raise GrammarError(verdict.error, verdict.path or constraint.field)

    def compile(self, constraint: Constraint, tenant: str) -> Future[Verdict]:
        """Compile a grammar, so that `require` knows. Others may wait for the same: the future must not be cancelled.

        Raises:
            GrammarBusy: the tenant has as many waiting as it may; or the model is being unloaded.
        """
        key = digest(constraint.source), tenant  # what several tenants wait for is compiled at the first one's turn
        with self._lock:
            pending = self._pending.get(key)
            if pending is None:
                try:
                    pending = self._turns.submit(tenant, partial(self._compile, constraint, tenant))
                except NoTurn:
                    raise GrammarBusy("too many schemas and grammars are waiting to be compiled") from None
                except RuntimeError:
                    raise GrammarBusy(UNLOADING) from None
                self._pending[key] = pending
        return pending

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._turns.close(GrammarBusy(UNLOADING))
        if (process := self._process) is not None:
            process.kill()

    def _compile(self, constraint: Constraint, tenant: str) -> Verdict:
        key = digest(constraint.source)
        try:
            with self._lock:
                known, ends = self._verdicts.get(key, (None, 0.0))
            if known is not None and time.monotonic() <= ends:
                return known
            schemas = [(path, msgspec.json.encode(each)) for path, each in constraint.schemas]
            job = Job(constraint.source, schemas, list(constraint.parts))
            verdict, ends = self._judge(job)
            with self._lock:
                self._verdicts[key] = verdict, ends
                if len(self._verdicts) > KEPT:
                    self._verdicts.popitem(last=False)
            return verdict
        finally:
            with self._lock:
                del self._pending[key, tenant]

    def _judge(self, job: Job) -> tuple[Verdict, float]:
        """The verdict, and until when it holds. Raises GrammarBusy: no process can be started."""
        for last in (False, True):
            process = self._started()
            try:
                return process.judge(job), math.inf
            except _Ended as error:
                log.warning("a grammar of %d characters %s", len(job.source), error)
                self._let_go(process)
                if last or error.too_slow:
                    # Too slow may also be a machine that had other things to do.
                    ends = time.monotonic() + SLOW_SECONDS if error.too_slow else math.inf
                    return Verdict(f"it is too complex to be compiled: that {error}"), ends
        raise AssertionError("not reached")

    def _started(self) -> _Process:
        if self._process is None:
            if self._closed:
                raise GrammarBusy(UNLOADING)
            try:
                process = _Process(self._command)
            except OSError as error:
                raise GrammarBusy(f"no process can be started that compiles grammars: {error.strerror}") from error
            try:
                process.open(self.vocabulary)
            except _Ended as error:
                process.kill()
                raise GrammarBusy(f"the process that compiles grammars does not start: it {error}") from error
            self._process = process
        return self._process

    def _let_go(self, process: _Process) -> None:
        self._process = None
        process.kill()


class _Ended(Exception):
    """The process is of no use any more: for another reason than the grammar, maybe, unless it was `too_slow`."""

    def __init__(self, message: str, *, too_slow: bool = False) -> None:
        super().__init__(message)
        self.too_slow = too_slow


class _Process:
    """The other process, one message each way at a time."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def open(self, vocabulary: Vocabulary) -> None:
        """Tell it the model's tokens. Raises _Ended."""
        self._exchange(msgspec.msgpack.encode(vocabulary), OPENING_SECONDS)

    def judge(self, job: Job) -> Verdict:
        """Have a grammar compiled. Raises _Ended: it could not be."""
        return msgspec.msgpack.decode(self._exchange(msgspec.msgpack.encode(job), DEADLINE_SECONDS), type=Verdict)

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _exchange(self, data: bytes, seconds: float) -> bytes:
        pipe, ends = self._process.stdout, time.monotonic() + seconds
        assert self._process.stdin is not None
        assert pipe is not None
        try:
            send(self._process.stdin, data)
        except (OSError, ValueError):  # it has ended, or was ended
            raise _Ended("ended the process that compiles") from None
        return self._receive(pipe, int.from_bytes(self._receive(pipe, LENGTH_BYTES, ends, seconds)), ends, seconds)

    def _receive(self, pipe: IO[bytes], size: int, ends: float, seconds: float) -> bytes:
        data = b""
        while len(data) < size:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if not poll.poll(max(ends - time.monotonic(), 0) * 1e3):
                raise _Ended(f"took more than {seconds:g} s", too_slow=True)
            more = pipe.read(size - len(data))
            if not more:
                raise _Ended("took more memory than there is, or ended the process that compiles")
            data += more
        return data


def send(pipe: IO[bytes], data: bytes) -> None:
    """Write a message."""
    rest = memoryview(len(data).to_bytes(LENGTH_BYTES) + data)
    while rest:
        rest = rest[pipe.write(rest) :]
    pipe.flush()
