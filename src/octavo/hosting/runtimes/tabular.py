"""What models of rows of features have in common: the names that clients of MLServer and KServe use."""

from typing import Any

from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import ANY, TensorSpec

INPUT = "input-0"
PREDICT = "predict"
PREDICT_PROBA = "predict_proba"


def features(count: int | None) -> tuple[TensorSpec]:
    """The input: a row of numbers of any datatype."""
    return (TensorSpec(name=INPUT, datatype=None, dims=(ANY if count is None else count,)),)


def numbers(array: NDArray[Any]) -> NDArray[Any]:
    """The rows of a request. Raises InferenceError: they are strings."""
    if array.dtype == object:
        raise InferenceError(f"input '{INPUT}' is {Datatype.BYTES}, and the model takes numbers")
    return array
