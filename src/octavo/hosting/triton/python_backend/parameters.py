"""What requests and responses say beside their tensors."""

from collections.abc import Mapping

from octavo.hosting.triton.python_backend.errors import TritonModelException

Parameters = dict[str, bool | int | float | str]


def text(value: object) -> str:
    """A text as a model gives it: bytes are one, too. Raises TypeError: it is none."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is a {type(value).__name__}, and must be a text")
    return value


def checked(parameters: Mapping[str, bool | int | float | str] | None) -> Parameters:
    """Parameters as a model gives them. Raises TritonModelException: they cannot be sent."""
    for name, value in (parameters or {}).items():
        if not isinstance(name, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(name)}")
        if type(value) not in (bool, int, float, str):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/float/str, found type {type(value)}"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise TritonModelException(f"the parameter '{name}' is {value}, which has more than 64 bits")
    return dict(parameters or {})
