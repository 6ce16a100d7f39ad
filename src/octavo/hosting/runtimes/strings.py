"""BYTES, for libraries whose strings are text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.errors import InferenceError


def decoded(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array of `str`. Raises InferenceError: some element is no UTF-8."""
    text = np.empty(array.size, object)
    try:
        text[:] = [each.decode() for each in array.ravel()]
    except UnicodeDecodeError:
        raise InferenceError(f"input '{name}' has an element that is no UTF-8, and the model takes text") from None
    return text.reshape(array.shape)


def encoded(array: NDArray[Any]) -> NDArray[Any]:
    """An array of `bytes`, of one whose elements are that or `str`."""
    data = np.empty(array.size, object)
    data[:] = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel()]
    return data.reshape(array.shape)
