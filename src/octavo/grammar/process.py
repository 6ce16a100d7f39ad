"""The process that compiles grammars for a frontend: a vocabulary in, then grammars, a verdict out for each.

It is ended when its frontend is, by it when a grammar takes too long, and by itself when nobody is there to do that.
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import msgspec

from octavo.grammar.compiler import DEADLINE_SECONDS, LENGTH_BYTES, OPENING_SECONDS, Job, Verdict, send
from octavo.grammar.constraint import json_schema
from octavo.grammar.errors import GrammarError
from octavo.grammar.matcher import compile_grammar
from octavo.grammar.schema import locate
from octavo.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MEMORY_BYTES = 4 << 30
NICENESS = 10
"""Streams go first."""


def judge(tokenizer: "LLTokenizer", job: Job) -> Verdict:
    """Compile a grammar."""
    error = _failure(tokenizer, job.source)
    if error is None:
        return Verdict()
    for path, data in job.schemas:
        schema = msgspec.json.decode(data)

        def failure(schema: Any, path: str = path) -> str | None:
            try:
                return _failure(tokenizer, json_schema(schema, path).source)
            except GrammarError as error:
                return str(error)

        if (own := failure(schema)) is not None:
            return Verdict(own, locate(schema, path, failure))
    for path, source in job.parts:
        if (own := _failure(tokenizer, source)) is not None:
            return Verdict(own, path)
    return Verdict(error)


def _failure(tokenizer: "LLTokenizer", source: str) -> str | None:
    try:
        compile_grammar(tokenizer, source).begin()
    except GrammarError as error:
        return str(error)
    return None


def _messages(pipe: IO[bytes]) -> Iterator[bytes]:
    while head := pipe.read(LENGTH_BYTES):
        yield pipe.read(int.from_bytes(head))


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End the process if this takes longer: the system does it, whatever holds the interpreter."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Answer until the frontend is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):  # some systems bound less
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    messages = _messages(sys.stdin.buffer)
    with at_most(2 * OPENING_SECONDS):
        tokenizer = msgspec.msgpack.decode(next(messages), type=Vocabulary).open()
    send(answers, b"")
    for message in messages:
        with at_most(2 * DEADLINE_SECONDS):
            verdict = judge(tokenizer, msgspec.msgpack.decode(message, type=Job))
        send(answers, msgspec.msgpack.encode(verdict))


if __name__ == "__main__":
    main()
