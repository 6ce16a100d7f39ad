"""How a process of Octavo logs: to standard error, with colours on a terminal."""

import asyncio
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT, ISO8601 = "default", "ISO8601"
FORMATS = (DEFAULT, ISO8601)
"""Of lines: `2026-05-20 20:03:26,123 INFO message`; and, as Triton's, `2026-05-20T20:03:26Z I 3415 message` with the
number of the process."""

NOTHING = logging.CRITICAL + 1
"""A level that no message has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, and how; Triton's settings of the same names.

    Attributes:
        info, warning, error: whether messages of the level are. verbose: with 1 or more, so are those that are of
            interest to who looks for a fault.
        format: of `FORMATS`. file: where the log is; empty for standard error.
    """

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0
    format: str = DEFAULT
    file: str = ""

    @property
    def level(self) -> int:
        """The lowest level that is logged."""
        levels = ((self.verbose > 0, logging.DEBUG), (self.info, logging.INFO), (self.warning, logging.WARNING))
        return next((level for logged, level in levels if logged), logging.ERROR if self.error else NOTHING)

    def has(self, level: int) -> bool:
        """Whether messages of a level are logged."""
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.verbose > 0

    @property
    def gaps(self) -> bool:
        """Whether messages of some level are not logged, though those of a lower one are."""
        levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
        return not all(self.has(level) for level in levels if level >= self.level)


@dataclass(slots=True)
class _Logging:
    """How this process logs. Attributes: name: that its lines have. console: of its terminal, if it has one."""

    settings: LogSettings
    name: str
    console: "Callable[[], Console] | None"


_logging = _Logging(LogSettings(), "", None)


def configure_logging(settings: LogSettings, *, name: str = "", console: "Callable[[], Console] | None" = None) -> None:
    """Set this process's logging up.

    Args:
        name: of the process, for the lines of one that is not the server itself.
        console: gives that of this process, if it shows anything else on the terminal; called only where there is one.
    """
    _logging.name, _logging.console = name, console
    _leave_out_what_no_line_has()
    for library in ("uvicorn", "httpx", "hpack"):  # hpack would log every header field, and with them keys
        logging.getLogger(library).setLevel(logging.WARNING)
    change_logging(settings)


def change_logging(settings: LogSettings) -> None:
    """Log in another way from now on. Any thread may say so."""
    handler = _handler(settings)
    if settings.gaps:
        handler.addFilter(lambda record: settings.has(record.levelno))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    root.setLevel(settings.level)
    # Loggers with a level of their own pass on what the others do not.
    handler.setLevel(settings.level)
    _logging.settings = settings
    for each in before:
        each.flush()


@contextmanager
def logging_to(file: str) -> Iterator[None]:
    """Have a file in the place of this process's standard error, and of that of the processes that it starts.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(Path(file).expanduser(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    before = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        for handler in logging.getLogger().handlers:
            handler.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(descriptor)


def current_logging() -> LogSettings:
    """How this process logs."""
    return _logging.settings


def _handler(settings: LogSettings) -> logging.Handler:
    name = f"{_logging.name}: " if _logging.name else ""
    handler: logging.Handler
    if settings.format == DEFAULT and not name and sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = _logging.console() if _logging.console else Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        # What a process of somebody's code says last is what it died of: nothing of that waits to be written.
        handler = logging.StreamHandler() if name else _LineHandler()
        handler.setFormatter(_IsoFormatter(name) if settings.format == ISO8601 else _LineFormatter(name))
    return handler


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
    """Works out once a second what time it is.

    Args:
        name: stands before every message.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(f"%(asctime)s %(levelname)s {name.replace('%', '%%')}%(message)s")
        self._name = name
        self._second = -1
        self._text = ""

    def format(self, record: logging.LogRecord) -> str:
        """As logging does, in one step where there is nothing but a line."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return self.line(record.created, record.levelname, record.getMessage())

    def line(self, created: float, level: str, message: str) -> str:
        """The line of a message. `created`: seconds since the epoch."""
        second = int(created)
        if second != self._second:
            self._second, self._text = second, self._time(second)
        return f"{self._text},{int((created - second) * 1000):03d} {level} {self._name}{message}"

    def _time(self, second: int) -> str:
        return time.strftime(self.default_time_format, time.localtime(second))


class _IsoFormatter(_LineFormatter):
    """Triton's format of that name."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._process = os.getpid()

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """The first line of a record that has several."""
        return self.line(record.created, record.levelname, record.message)

    def line(self, created: float, level: str, message: str) -> str:
        """The line of a message. `created`: seconds since the epoch."""
        second = int(created)
        if second != self._second:
            self._second, self._text = second, self._time(second)
        return f"{self._text} {level[0]} {self._process} {self._name}{message}"

    def _time(self, second: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


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
