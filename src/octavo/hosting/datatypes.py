"""The types that elements of tensors have."""

from enum import StrEnum

import numpy as np


class Datatype(StrEnum):
    """By the names of the Open Inference Protocol ("Tensor Data Types"), and BF16, Triton's addition.

    In memory BF16 is its bits in UInt16, for numpy has no such type, and BYTES are objects: `bytes`.
    """

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def dtype(self) -> np.dtype:
        """Of the arrays that hold it, little-endian."""
        return _DTYPES[self]

    @property
    def itemsize(self) -> int:
        """Bytes of an element on the wire; 0 if that differs between elements."""
        return 0 if self is Datatype.BYTES else _DTYPES[self].itemsize

    @classmethod
    def of(cls, dtype: np.dtype) -> "Datatype":
        """What holds an array's elements; objects are taken for `bytes`. Raises ValueError: nothing does."""
        if dtype.kind == "O":
            return cls.BYTES
        found = _BY_DTYPE.get(dtype.newbyteorder("="))
        if found is None:
            raise ValueError(f"no tensor has elements of type {dtype}")
        return found


_NUMPY = {
    Datatype.BOOL: "?",
    Datatype.UINT8: "u1",
    Datatype.UINT16: "<u2",
    Datatype.UINT32: "<u4",
    Datatype.UINT64: "<u8",
    Datatype.INT8: "i1",
    Datatype.INT16: "<i2",
    Datatype.INT32: "<i4",
    Datatype.INT64: "<i8",
    Datatype.FP16: "<f2",
    Datatype.BF16: "<u2",
    Datatype.FP32: "<f4",
    Datatype.FP64: "<f8",
    Datatype.BYTES: "O",
}
_DTYPES = {datatype: np.dtype(name) for datatype, name in _NUMPY.items()}
_BY_DTYPE = {dtype.newbyteorder("="): each for each, dtype in _DTYPES.items() if each is not Datatype.BF16}

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
