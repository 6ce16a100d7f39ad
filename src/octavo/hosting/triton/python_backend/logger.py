"""`pb_utils.Logger`: into the server's log."""

import logging
from enum import IntEnum
from typing import ClassVar

_log = logging.getLogger("octavo.model")


class LogLevel(IntEnum):
    """How important a message is."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.VERBOSE: logging.DEBUG,
}


class Logger:
    """Messages of a model's."""

    INFO: ClassVar = LogLevel.INFO
    WARNING: ClassVar = LogLevel.WARNING
    ERROR: ClassVar = LogLevel.ERROR
    VERBOSE: ClassVar = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        """Write a message."""
        _log.log(_LEVELS[level], "%s", message)

    @staticmethod
    def log_info(message: str) -> None:
        """Write one of level INFO."""
        Logger.log(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write one of level WARNING."""
        Logger.log(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Write one of level ERROR."""
        Logger.log(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write one that is of interest to who looks for a fault."""
        Logger.log(message, LogLevel.VERBOSE)
