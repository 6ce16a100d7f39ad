"""Arrays to and from DLPack, without a copy: https://dmlc.github.io/dlpack/latest/c_api.html.

numpy has no BF16, so that its arrays hold the bits; within a capsule the type is told by a byte of its own, which is
set here.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.triton.python_backend.errors import TritonModelException

CPU = (1, 0)
"""Type and number of the device."""

_UINT, _BFLOAT = 1, 4
_CPU_TYPES = (1, 3)  # of the CPU, or of its pinned memory


class _Tensor(ctypes.Structure):
    """`DLTensor`, with which a capsule's content begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def to_capsule(array: NDArray[Any], *, bfloat16: bool) -> Any:
    """A capsule that shares the memory of an array."""
    if not array.flags.writeable:  # which capsules cannot say
        array = array.copy()
    capsule = array.__dlpack__()
    if bfloat16:
        _content(capsule).code = _BFLOAT
    return capsule


def from_capsule(capsule: Any) -> tuple[NDArray[Any], bool]:
    """An array that shares the memory of a capsule, which is used up, and whether its elements are BF16.

    Raises:
        TritonModelException: memory of another device than the CPU, or elements that do not stand one behind the other.
    """
    content = _content(capsule)
    if content.device_type not in _CPU_TYPES:
        raise TritonModelException(f"DLDevice type {content.device_type} is not support by Python backend.")
    if not _is_contiguous(content):
        raise TritonModelException(
            "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."
        )
    bfloat16 = content.code == _BFLOAT
    if bfloat16:
        content.code = _UINT
    return np.asarray(_Writable(np.from_dlpack(_Exporter(capsule)))), bfloat16


def _content(capsule: Any) -> _Tensor:
    return _Tensor.from_address(_pointer(capsule, b"dltensor"))


def _is_contiguous(content: _Tensor) -> bool:
    if not content.strides:
        return True
    expected = 1
    for axis in reversed(range(content.ndim)):
        if content.shape[axis] > 1 and content.strides[axis] != expected:
            return False
        expected *= content.shape[axis]
    return True


class _Writable:
    """The memory of an array that numpy takes for read-only: capsules cannot say that it is not, and it is not."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # as long as this is there
        place, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (place, False)}


class _Exporter:
    """A capsule as numpy takes it."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **options: object) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU
