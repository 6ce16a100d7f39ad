"""Arrays as JSON, which has no number that is not finite: those are strings, as in protobuf's JSON."""

from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

NAN, INFINITY, MINUS_INFINITY = '"NaN"', '"Infinity"', '"-Infinity"'


def array_json(array: NDArray[Any]) -> str:
    """Numbers or booleans as nested lists, contiguous and of a type that is not BYTES."""
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return text
    # There, and nowhere else, it has null.
    values = array[~np.isfinite(array)].tolist()
    return "".join(chain.from_iterable(zip(text.split("null"), [*map(_word, values), ""], strict=True)))


def scalar_json(value: float | np.floating[Any]) -> str:
    """One number."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode() if np.isfinite(value) else _word(value)


def _word(value: Any) -> str:
    return NAN if np.isnan(value) else INFINITY if value > 0 else MINUS_INFINITY
