"""How a process of Octavo logs: to standard error, with colours on a terminal."""

import asyncio
import logging
import math
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def configure_logging(level: str, console: "Callable[[], Console] | None" = None) -> None:
    """Set this process's logging up.

    Args:
        level: debug, info, warning or error.
        console: gives that of this process, if it shows anything else on the terminal; called only where there is one.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=console() if console else Console(stderr=True), show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = _LineHandler()
        handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    _leave_out_what_no_line_has()
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it would log every header field, and with them keys


def _leave_out_what_no_line_has() -> None:
    """Thousands of requests a second have a line each (see "Optimization" in Python's logging HOWTO)."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # records need not know who made them


TOGETHER_SECONDS = 0.01
"""Lines that follow others so soon are written together."""


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines that come soon one after the other together, in order: each alone would cost a call of the system.
    One that comes alone is written in the same turn of the event loop.

    Errors, and lines of threads without a loop, are written at once, with those before them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._writer: asyncio.AbstractEventLoop | None = None
        """The loop that will write them, in `_thread`: to ask which one runs is a call of the system."""
        self._thread = 0
        self._written = -math.inf
        """When lines were written last: `time.monotonic()`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's line soon."""
        try:
            self._put(self.format(record))
            if record.levelno >= logging.ERROR:
                self.flush()
        except Exception:
            self.handleError(record)

    def write_info(self, message: str) -> None:
        """Write the line of a message soon."""
        assert isinstance(self.formatter, _LineFormatter)
        with self.lock:  # type: ignore[union-attr]  # a handler always has one
            self._put(self.formatter.line(time.time(), "INFO", message))

    def _put(self, line: str) -> None:
        self._lines.append(line + self.terminator)
        if self._writer is None or self._thread != threading.get_ident() or self._writer.is_closed():
            self._write_soon()

    def _write_soon(self) -> None:
        try:
            self._writer = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            self._thread = threading.get_ident()
            wait = self._written + TOGETHER_SECONDS - time.monotonic()
            if wait > 0:
                self._writer.call_later(wait, self.flush)
            else:
                self._writer.call_soon(self.flush)

    def flush(self) -> None:
        """Write the lines that have not been written."""
        with self.lock:  # type: ignore[union-attr]  # a handler always has one
            self._writer = None
            lines, self._lines = self._lines, []
            if lines:
                self._written = time.monotonic()
            for piece in _pieces(lines) if len(lines) > 1 else lines:
                self.stream.write(piece)
            self.stream.flush()


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    """Lines together, as many as a pipe takes without those of other processes between them."""
    piece: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > select.PIPE_BUF and piece:
            yield "".join(piece)
            piece, size = [], len(line)
        piece.append(line)
    if piece:
        yield "".join(piece)


class _LineFormatter(logging.Formatter):
    """Works out once a second what time it is."""

    _second = -1
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        """As logging does, in one step where there is nothing but a line."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return self.line(record.created, record.levelname, record.getMessage())

    def line(self, created: float, level: str, message: str) -> str:
        """The line of a message. `created`: seconds since the epoch."""
        second = int(created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, time.localtime(second))
        return f"{self._text},{int((created - second) * 1000):03d} {level} {message}"


def log_info(logger: logging.Logger, message: str) -> None:
    """As `Logger.info` for a whole message: without a record, which costs more than the line, if nothing but the
    handler of this process would see it."""
    if not logger.isEnabledFor(logging.INFO):
        return
    handlers, at = logging.root.handlers, logger
    while not at.handlers and not at.filters and at.propagate and at.parent is not None:
        at = at.parent
    if (
        at is logging.root
        and len(handlers) == 1
        and type(handler := handlers[0]) is _LineHandler
        and not handler.filters
    ):
        handler.write_info(message)
    else:
        logger.info(message)
