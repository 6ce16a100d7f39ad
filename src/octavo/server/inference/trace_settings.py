"""What is traced, for clients that ask or change it: Triton's trace extension."""

import re
from collections.abc import Mapping
from typing import Any

from octavo.deployments.trace_settings import LEVELS, MODE, OFF, UNLIMITED, ChangeTracing
from octavo.hosting.errors import Code, InferenceError
from octavo.server.context import Server
from octavo.server.inference.control import fulfil
from octavo.server.inference.lookup import find, is_ready
from octavo.settings import one_of, shown

NOT_CHANGED = "the server does not support trace: it is a part of a program"

NUMBERS = {"trace_rate": "rate", "trace_count": "count", "log_frequency": "log_frequency"}

MOST_COUNT, MOST = 2**31 - 1, 2**32 - 1
"""As Triton says it."""


def trace_settings(server: Server, model: str) -> dict[str, Any]:
    """As they are, for a model; for all that have none of their own if there is no name.

    Raises:
        InferenceError: there is no such model, or it is not ready.
    """
    _require(server, model)
    tracing = server.tracer.tracing
    setting = tracing.of(model)
    return {
        "trace_level": list(setting.levels) or [OFF],
        "trace_rate": str(setting.rate),
        "trace_count": str(server.tracer.left(setting)),
        "log_frequency": str(setting.log_frequency),
        "trace_file": tracing.file,
        "trace_mode": MODE,
    }


async def change_trace_settings(server: Server, model: str, wanted: Mapping[str, object]) -> dict[str, Any]:
    """Change some, for all frontends; those that are None are as if they had never been set. Returns all as they are
    then.

    Raises:
        InferenceError: one is unknown, or is none, or cannot be changed; all are as they were.
    """
    _require(server, model)
    fields: dict[str, Any] = {}
    clear: list[str] = []
    for name, value in wanted.items():
        match name:
            case "trace_file":
                _check_file(server, value)
            case "trace_mode":
                if value not in (None, MODE):
                    raise _invalid(name, f"the mode is {MODE}, which writes files")
            case "trace_level" if value is not None:
                fields["levels"] = _levels(value)
            case "trace_level":
                clear.append("levels")
            case _ if name not in NUMBERS:
                raise _invalid(name, f"give {one_of(sorted(trace_settings(server, '')))}")
            case _ if value is None:
                clear.append(NUMBERS[name])
            case _:
                fields[NUMBERS[name]] = _number(name, value)
    if server.administer is not None:
        if fields or clear:
            await fulfil(server.administer, ChangeTracing(model=model, clear=tuple(clear), **fields))
    elif any(value != getattr(server.tracer.tracing.of(model), name) for name, value in fields.items()):
        raise InferenceError(NOT_CHANGED, Code.UNSUPPORTED)
    return trace_settings(server, model)


def _require(server: Server, model: str) -> None:
    if model:
        try:
            known = is_ready(find(server.deployments, model))
        except InferenceError:
            known = False
        if not known:
            raise InferenceError(f"Request for unknown model : {model:.300}")


def _check_file(server: Server, value: object) -> None:
    if value not in (None, server.tracer.tracing.file):
        raise InferenceError(
            "trace file location can not be updated through network protocol; --trace-config triton,file=PATH says it",
            Code.UNSUPPORTED,
        )


def _levels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InferenceError(f"attempt to access JSON non-array as array: trace_level is {shown(value)}")
    for each in value:
        if not isinstance(each, str):
            raise InferenceError(f"attempt to access JSON non-string as string: trace_level has {shown(each)}")
        if each not in (*LEVELS, OFF):
            raise _invalid("trace_level", f"there is no level {shown(each)}; give {one_of((*LEVELS, OFF))}")
    if not value:
        raise _invalid("trace_level", f"there is none; give {one_of((*LEVELS, OFF))}")
    if OFF in value and len(value) > 1:
        raise InferenceError("Expect only one trace level 'OFF' is specified")
    return tuple(level for level in LEVELS if level in value)


def _number(name: str, value: object) -> int:
    if not isinstance(value, str):
        raise InferenceError(f"attempt to access JSON non-string as string: {name} is {shown(value)}")
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", value):
        raise InferenceError(f"Unable to parse '{name}', got: {value:.100}")
    number = int(value)
    least, most = (UNLIMITED, MOST_COUNT) if name == "trace_count" else (0, MOST)
    if name == "trace_count" and number < least:
        raise InferenceError(f"Unable to parse '{name}'. Expecting value >= {least}, got:{number}")
    if not least <= number <= most:
        raise InferenceError(f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {number}")
    return number


def _invalid(name: str, why: str) -> InferenceError:
    return InferenceError(f"Attempting to set invalid trace setting '{name:.100}': {why}")
