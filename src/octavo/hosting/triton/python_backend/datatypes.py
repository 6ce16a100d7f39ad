"""Datatypes by Triton's numbers and names, and what numpy calls them."""

from functools import lru_cache
from typing import Any

import numpy as np

from octavo.hosting.datatypes import Datatype

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}

NUMBERS = {
    Datatype.BOOL: 1,
    Datatype.UINT8: 2,
    Datatype.UINT16: 3,
    Datatype.UINT32: 4,
    Datatype.UINT64: 5,
    Datatype.INT8: 6,
    Datatype.INT16: 7,
    Datatype.INT32: 8,
    Datatype.INT64: 9,
    Datatype.FP16: 10,
    Datatype.FP32: 11,
    Datatype.FP64: 12,
    Datatype.BYTES: 13,
    Datatype.BF16: 14,
}
"""As tritonserver.h has them."""

_TO_NUMPY: dict[int, Any] = {
    number: np.dtype(TRITON_STRING_TO_NUMPY["TYPE_STRING" if each is Datatype.BYTES else f"TYPE_{each.value}"]).type
    for each, number in NUMBERS.items()
    if each is not Datatype.BF16
}


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """numpy's type for a name of configurations', such as "TYPE_FP32"."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """numpy's type for a number; None for one that numpy has none for."""
    return _TO_NUMPY.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number for a type or dtype of numpy's; None if there is none."""
    datatype = datatype_of(np.dtype(data_type))
    return None if datatype is None else NUMBERS[datatype]


@lru_cache(256)
def datatype_of(dtype: np.dtype) -> Datatype | None:
    """The datatype that holds an array's elements; None if none does."""
    if dtype.kind == "S":
        return Datatype.BYTES
    try:
        return Datatype.of(dtype)
    except ValueError:
        return None
