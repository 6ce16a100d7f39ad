"""Errors as models make them, and as they get them."""

from enum import IntEnum
from typing import ClassVar

from octavo.hosting.errors import Code, InferenceError


class TritonModelException(Exception):
    """Something that a model does is not possible."""


class ErrorCode(IntEnum):
    """Why, as Triton counts it."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


_CODES = {
    ErrorCode.UNKNOWN: Code.UNKNOWN,
    ErrorCode.INTERNAL: Code.INTERNAL,
    ErrorCode.NOT_FOUND: Code.NOT_FOUND,
    ErrorCode.INVALID_ARG: Code.INVALID_ARGUMENT,
    ErrorCode.UNAVAILABLE: Code.UNAVAILABLE,
    ErrorCode.UNSUPPORTED: Code.UNSUPPORTED,
    ErrorCode.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    ErrorCode.CANCELLED: Code.CANCELLED,
}
_ERROR_CODES = {code: each for each, code in _CODES.items()}


class TritonError:
    """Why a request has no outputs."""

    __slots__ = ("_code", "_message")

    UNKNOWN: ClassVar = ErrorCode.UNKNOWN
    INTERNAL: ClassVar = ErrorCode.INTERNAL
    NOT_FOUND: ClassVar = ErrorCode.NOT_FOUND
    INVALID_ARG: ClassVar = ErrorCode.INVALID_ARG
    UNAVAILABLE: ClassVar = ErrorCode.UNAVAILABLE
    UNSUPPORTED: ClassVar = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS: ClassVar = ErrorCode.ALREADY_EXISTS
    CANCELLED: ClassVar = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            raise TypeError(f"TritonError(message: str, code: TritonError.…), not ({message!r}, {code!r})")
        self._message = message
        self._code = code

    def message(self) -> str:
        """What is said of it."""
        return self._message

    def code(self) -> ErrorCode:
        """Of what kind it is."""
        return self._code

    def to_inference_error(self) -> InferenceError:
        """The same, as it is sent."""
        return InferenceError(self._message, _CODES[self._code])

    @classmethod
    def of(cls, error: InferenceError) -> "TritonError":
        """An error of another model's, as a model gets it."""
        return cls(str(error), _ERROR_CODES[error.code])
