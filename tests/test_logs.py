"""The lines of a log: none lost, in their order, and many of them in one write."""

import asyncio
import io
import logging
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from octavo.logs import TOGETHER_SECONDS, _LineFormatter, _LineHandler

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


class Stream(io.StringIO):
    """Keeps what is written in one piece apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)

    @property
    def lines(self) -> list[str]:
        """Without their times."""
        return [LINE.sub("", line) for line in "".join(self.pieces).splitlines()]


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def log(stream: Stream) -> Iterator[logging.Logger]:
    handler = _LineHandler()
    handler.setFormatter(_LineFormatter())
    handler.setStream(stream)
    log = logging.Logger("test", logging.INFO)
    log.addHandler(handler)
    yield log
    handler.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


def test_lines_of_a_turn_are_one_write(log: logging.Logger, stream: Stream) -> None:
    async def test() -> None:
        for turn in range(3):
            for number in range(10):
                log.info("line %d of %d %%", number, turn)
            assert len(stream.pieces) == turn
            if turn:
                await asyncio.sleep(2 * TOGETHER_SECONDS)  # behind those of the turn before
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(stream.pieces) == turn + 1

    run(test)
    assert stream.lines == [f"INFO line {number} of {turn} %" for turn in range(3) for number in range(10)]


def test_lines_that_come_soon_one_after_the_other_are_few_writes(log: logging.Logger, stream: Stream) -> None:
    async def test() -> None:
        for number in range(1000):
            log.info("line %d", number)
            await asyncio.sleep(0)
        await asyncio.sleep(2 * TOGETHER_SECONDS)

    run(test)
    assert stream.lines == [f"INFO line {number}" for number in range(1000)]
    assert len(stream.pieces) < 500


def test_errors_and_other_threads_write_at_once_and_in_order(log: logging.Logger, stream: Stream) -> None:
    async def test() -> None:
        log.info("first")
        log.error("second")
        assert stream.lines == ["INFO first", "ERROR second"]
        log.info("third")
        thread = threading.Thread(target=log.info, args=("fourth",))
        thread.start()
        thread.join()
        assert stream.lines[2:] == ["INFO third", "INFO fourth"]

    run(test)
    log.info("fifth")
    assert stream.lines[4:] == ["INFO fifth"]


def test_a_loop_that_ended_is_not_waited_for(log: logging.Logger, stream: Stream) -> None:
    loop = asyncio.new_event_loop()
    asyncio._set_running_loop(loop)  # it runs, and never comes to a next turn
    log.info("first")
    asyncio._set_running_loop(None)
    loop.close()

    async def test() -> None:
        log.info("second")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stream.lines == ["INFO first", "INFO second"]

    run(test)


def test_pieces_are_such_that_no_other_process_comes_between(log: logging.Logger, stream: Stream) -> None:
    async def test() -> None:
        for size in (1000, 1000, 1000, 1000, 10_000, 1, 1, select.PIPE_BUF):
            log.info("x" * size)

    run(test)
    log.handlers[0].flush()
    assert [len(line) for line in stream.lines] == [5 + size for size in (1000,) * 4 + (10_000, 1, 1, select.PIPE_BUF)]
    assert all(len(piece) <= select.PIPE_BUF or piece.count("\n") == 1 for piece in stream.pieces)
    assert len(stream.pieces) < 8


def test_failures_have_their_trace(log: logging.Logger, stream: Stream) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("it failed")
    assert stream.lines[:2] == ["ERROR it failed", "Traceback (most recent call last):"]
    assert stream.lines[-1] == "ValueError: wrong"


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "raise ValueError"])
def test_nothing_is_lost_when_the_process_ends(end: str) -> None:
    code = f"""
import asyncio, logging
from octavo.logs import LogSettings, configure_logging
configure_logging(LogSettings())
async def main():
    logging.getLogger("octavo.access").info("the last line")
    {end}
asyncio.run(main())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "INFO the last line" in found.stderr
