"""The parameters of a request that the server itself heeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import msgspec

from octavo.hosting.errors import InferenceError
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START, Details

UINT64 = 2**64
RESERVED = "triton_"


@dataclass(frozen=True, slots=True)
class Options:
    """What a request says of its own treatment.

    Attributes:
        priority: 1 is the most urgent, 0 the model's default. timeout: seconds that it may wait; 0 for ever.
        details: what the model may want to know.
    """

    priority: int = 0
    timeout: float = 0.0
    details: Details | None = None


DEFAULT = Options()

_HEEDED = frozenset(("priority", "timeout", "sequence_id", "sequence_start", "sequence_end"))


def options(parameters: Mapping[str, object]) -> Options:
    """The options among a request's parameters. Others are for the model, and need a value that one can have.

    Raises:
        InferenceError: a value of the wrong type, or a name that is the server's.
    """
    for name, value in parameters.items():
        if name.startswith(RESERVED):
            raise InferenceError(
                f"parameter keys starting with '{RESERVED}' are reserved for Triton usage and should not be specified."
            )
        if not isinstance(value, str | int | float):
            raise InferenceError(
                f"parameter '{name:.100}' has invalid type. It should be either 'int', 'bool', or 'string'."
            )
        if name not in _HEEDED and isinstance(value, int) and not -(2**63) <= value < UINT64:
            raise InferenceError(f"parameter '{name:.100}' is no whole number of 64 bits")
    sequence = parameters.get("sequence_id", 0)
    if not isinstance(sequence, str) and not _is_unsigned(sequence):
        raise InferenceError(f"Unable to parse 'sequence_id': {sequence} is no whole number from 0 on, and no string")
    for name in ("sequence_start", "sequence_end"):
        if not isinstance(parameters.get(name, False), bool):
            raise InferenceError(f"Unable to parse '{name}': {parameters[name]} is neither true nor false")
    return Options(_unsigned(parameters, "priority"), _unsigned(parameters, "timeout") / 1e6, _details(parameters))


def named(details: Details | None, name: str) -> Details | None:
    """The details of a request that its client calls so; empty if it does not."""
    if not name:
        return details
    return Details(name) if details is None else msgspec.structs.replace(details, id=name)


def with_parameters(details: Details | None, more: Mapping[str, str]) -> Details | None:
    """The details of a request with further parameters, which go before its own."""
    if not more:
        return details
    if details is None:
        return Details(parameters=dict(more))
    return msgspec.structs.replace(details, parameters={**details.parameters, **more})


def _details(parameters: Mapping[str, object]) -> Details | None:
    own = cast(dict[str, bool | int | float | str], {n: v for n, v in parameters.items() if n not in _HEEDED})
    sequence = cast(int | str, parameters.get("sequence_id", 0))
    started, ended = parameters.get("sequence_start", False), parameters.get("sequence_end", False)
    flags = (SEQUENCE_START if started else 0) | (SEQUENCE_END if ended else 0)
    return Details(sequence=sequence, flags=flags, parameters=own) if own or sequence or flags else None


def _unsigned(parameters: Mapping[str, object], name: str) -> int:
    value = parameters.get(name, 0)
    if not _is_unsigned(value):
        raise InferenceError(f"Unable to parse '{name}': {value!s:.100} is no whole number from 0 to {UINT64 - 1}")
    assert isinstance(value, int)
    return value


def _is_unsigned(value: object) -> bool:
    return type(value) is int and 0 <= value < UINT64
