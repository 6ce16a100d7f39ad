"""The types that elements of tensors have."""

from enum import StrEnum
from typing import Self

import numpy as np


class Datatype(StrEnum):
    """By the names of the Open Inference Protocol ("Tensor Data Types"), and BF16, Triton's addition.

    In memory BF16 is its bits in UInt16, for numpy has no such type, and BYTES are objects: `bytes`.
    """

    _value_: str
    dtype: np.dtype
    """Of the arrays that hold it, little-endian."""

    itemsize: int
    """Bytes of an element on the wire; 0 if that differs between elements."""

    def __new__(cls, name: str, dtype: str = "") -> Self:
        """A member. Every request asks for what is an attribute here; who looks a member up gives its name alone."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.dtype = np.dtype(dtype)
        member.itemsize = 0 if member.dtype.hasobject else member.dtype.itemsize
        return member

    BOOL = "BOOL", "?"
    UINT8 = "UINT8", "u1"
    UINT16 = "UINT16", "<u2"
    UINT32 = "UINT32", "<u4"
    UINT64 = "UINT64", "<u8"
    INT8 = "INT8", "i1"
    INT16 = "INT16", "<i2"
    INT32 = "INT32", "<i4"
    INT64 = "INT64", "<i8"
    FP16 = "FP16", "<f2"
    BF16 = "BF16", "<u2"
    FP32 = "FP32", "<f4"
    FP64 = "FP64", "<f8"
    BYTES = "BYTES", "O"

    @classmethod
    def of(cls, dtype: np.dtype) -> "Datatype":
        """What holds an array's elements; objects are taken for `bytes`. Raises ValueError: nothing does."""
        if dtype.kind == "O":
            return cls.BYTES
        found = _BY_DTYPE.get(dtype.newbyteorder("="))
        if found is None:
            raise ValueError(f"no tensor has elements of type {dtype}")
        return found


_BY_DTYPE = {each.dtype.newbyteorder("="): each for each in Datatype if each is not Datatype.BF16}

BY_NAME = {
    "bool": Datatype.BOOL,
    "uint8": Datatype.UINT8,
    "uint16": Datatype.UINT16,
    "uint32": Datatype.UINT32,
    "uint64": Datatype.UINT64,
    "int8": Datatype.INT8,
    "int16": Datatype.INT16,
    "int32": Datatype.INT32,
    "int64": Datatype.INT64,
    "float16": Datatype.FP16,
    "bfloat16": Datatype.BF16,
    "float32": Datatype.FP32,
    "float64": Datatype.FP64,
}
"""By what most libraries call them."""
