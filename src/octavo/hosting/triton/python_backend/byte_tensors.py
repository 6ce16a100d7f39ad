"""BYTES tensors in their binary form: each element behind its length in 4 bytes."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("<I")


def serialize_byte_tensor(input_tensor: NDArray[Any]) -> Any:
    """The binary form of an array of objects or bytes, in row-major order: elements that are no bytes are what `str`
    makes of them, in UTF-8. An empty tuple for an empty array, and None for one of another type, as Triton has it."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return to_binary(input_tensor)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> NDArray[Any]:
    """The elements of a binary form, as a flat array of objects."""
    elements, at = [], 0
    while at < len(encoded_tensor):
        (size,) = _LENGTH.unpack_from(encoded_tensor, at)
        at += _LENGTH.size
        (element,) = struct.unpack_from(f"<{size}s", encoded_tensor, at)
        elements.append(element)
        at += size
    found = np.empty(len(elements), object)
    found[:] = elements
    return found


def to_binary(array: NDArray[Any]) -> bytes:
    """The binary form of an array of objects or bytes."""
    pieces: list[bytes] = []
    for each in array.ravel().tolist():
        data = each if type(each) is bytes else str(each).encode()
        pieces += (_LENGTH.pack(len(data)), data)
    return b"".join(pieces)
