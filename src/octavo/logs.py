"""How a process of Octavo logs: to standard error, with colours on a terminal."""

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def configure_logging(level: str, console: "Console | None" = None) -> None:
    """Set this process's logging up.

    Args:
        level: debug, info, warning or error.
        console: of this process, if it shows anything else on the terminal.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=console or Console(stderr=True), show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
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


class _LineFormatter(logging.Formatter):
    """Works out once a second what time it is."""

    _second = -1
    _text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """As logging does without a `datefmt`."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, time.localtime(second))
        return f"{self._text},{int(record.msecs):03d}"
