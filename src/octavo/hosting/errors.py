"""What can go wrong with a request for a hosted model, in the words of the Open Inference Protocol's servers."""

from enum import Enum

from octavo.errors import OctavoError


class Code(Enum):
    """Why, as gRPC and Triton tell it apart."""

    INVALID_ARGUMENT = "invalid argument"
    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


class InferenceError(OctavoError):
    """A request that was not computed, alone: other requests of its batch are.

    Attributes:
        code: whose fault it is, and whether trying again helps. `code.value` is a text, such as "unavailable".
        retry_after: seconds after which it may, if that is known.
        field: of a body that is to blame, if there is one.
    """

    def __init__(
        self,
        message: str,
        code: Code = Code.INVALID_ARGUMENT,
        *,
        retry_after: float | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.field = field


def forget_frames(error: BaseException) -> None:
    """Have an error that is kept refer no more to the frames that it went through. They hold tensors, and are a cycle
    with whoever holds the error: memory that these lie in would be lent until the interpreter looks for cycles."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
