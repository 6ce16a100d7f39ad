"""How the server logs, for clients that ask or change it: Triton's logging extension."""

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.deployments.control import Administer, ChangeLogging
from octavo.hosting.errors import Code, InferenceError
from octavo.logs import FORMATS, LogSettings, current_logging
from octavo.server.inference.control import fulfil
from octavo.settings import one_of, shown

MOST_VERBOSE = 2**32 - 1
"""What gRPC's messages have room for."""

NOT_CHANGED = "the server does not support dynamic logging: it is a part of a program that logs as it likes"

_FIELDS = {
    "log_info": "info",
    "log_warning": "warning",
    "log_error": "error",
    "log_verbose_level": "verbose",
    "log_format": "format",
}


def log_settings() -> dict[str, Any]:
    """As they are."""
    return _written(current_logging())


async def change_log_settings(administer: Administer | None, wanted: Mapping[str, object]) -> dict[str, Any]:
    """Change some, of all processes of the server; those that are None stay. Returns all as they are then.

    Raises:
        InferenceError: one is unknown, or is none, or cannot be changed; all are as they were.
    """
    now = log_settings()
    checked = {name: _checked(name, value) for name, value in wanted.items() if value is not None}
    changed = {_FIELDS[name]: value for name, value in checked.items() if value != now[name]}
    if changed:
        if administer is None:
            raise InferenceError(NOT_CHANGED, Code.UNSUPPORTED)
        await fulfil(administer, msgspec.convert(changed, ChangeLogging))
    return log_settings()


def _written(settings: LogSettings) -> dict[str, Any]:
    return {
        "log_file": settings.file,
        "log_info": settings.info,
        "log_warning": settings.warning,
        "log_error": settings.error,
        "log_verbose_level": settings.verbose,
        "log_format": settings.format,
    }


def _checked(name: str, value: object) -> object:
    """A value. Raises InferenceError: it is none, or not for clients."""
    match name:
        case "log_file":
            if value != current_logging().file:
                raise InferenceError(
                    "log file location can not be updated through network protocol; --log-file says it",
                    Code.UNSUPPORTED,
                )
        case "log_info" | "log_warning" | "log_error":
            _require(isinstance(value, bool), "boolean", name, value)
        case "log_verbose_level":
            whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_VERBOSE
            _require(whole, "unsigned-integer", name, value)
        case "log_format":
            _require(isinstance(value, str), "string", name, value)
            if value not in FORMATS:
                raise InferenceError(f"invalid argument for log_format, got: {value!s:.100}; give {one_of(FORMATS)}")
        case _:
            known = one_of(sorted(_written(current_logging())))
            raise InferenceError(f"Attempting to set invalid log setting '{name:.100}'; give {known}")
    return value


def _require(holds: bool, kind: str, name: str, value: object) -> None:
    if not holds:
        raise InferenceError(f"attempt to access JSON non-{kind} as {kind}: {name} is {shown(value)}")
