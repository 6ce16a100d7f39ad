"""`pb_utils.Tensor`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.tensors import Buffer
from octavo.hosting.triton.python_backend.byte_tensors import to_binary
from octavo.hosting.triton.python_backend.datatypes import NUMBERS, datatype_of
from octavo.hosting.triton.python_backend.dlpack import CPU, from_capsule, to_capsule
from octavo.hosting.triton.python_backend.errors import TritonModelException
from octavo.hosting.triton.python_backend.parameters import text
from octavo.hosting.wire import Part

_UNNAMED = "Tensor name cannot be an empty string."


class Tensor:
    """A named array. It shares the memory of the array that it is made of.

    Raises:
        TypeError: no name, or no array. TritonModelException: an empty name, or elements that no tensor can have.
    """

    __slots__ = ("_array", "_datatype", "_name")

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"Tensor(name: str, array: numpy.ndarray), not of a {type(array).__name__}")
        datatype = datatype_of(array.dtype)
        if datatype is None:
            raise TritonModelException(f"NumPy dtype is not supported. It is {array.dtype}; for text, use dtype=object")
        if not name:
            raise TritonModelException(_UNNAMED)
        self._name = name if type(name) is str else text(name)
        self._datatype, self._array = datatype, array

    @classmethod
    def of(cls, name: str, datatype: Datatype, array: NDArray[Any]) -> "Tensor":
        """A tensor whose parts are known to fit."""
        tensor = cls.__new__(cls)
        tensor._name, tensor._datatype, tensor._array = name, datatype, array
        return tensor

    def name(self) -> str:
        """What the model's configuration calls it."""
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        """The array; of BYTES one of `bytes`, as dtype object."""
        if self._datatype is Datatype.BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        return self._array

    def triton_dtype(self) -> int:
        """The datatype's number, as tritonserver.h has it."""
        return NUMBERS[self._datatype]

    def shape(self) -> list[int]:
        """With the batch dimension, if there is one."""
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """It is in the memory of the CPU, as all tensors are."""
        return True

    def to_dlpack(self) -> Any:
        """A capsule that shares its memory. Raises TritonModelException: it holds BYTES."""
        if self._datatype is Datatype.BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return to_capsule(np.ascontiguousarray(self._array), bfloat16=self._datatype is Datatype.BF16)

    def __dlpack__(self, *, stream: object = None, **options: object) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        """A tensor that shares the memory of a capsule, or of a library's tensor.

        Raises:
            TritonModelException: it is neither, on another device than the CPU, not contiguous, or of a type that no
                tensor has.
        """
        if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
            device = tensor.__dlpack_device__()
            if int(device[0]) not in (1, 3):
                raise TritonModelException(
                    f"the tensor '{name}' is on a device of DLPack's type {int(device[0])}; move it to the CPU first"
                )
            tensor = tensor.__dlpack__()
        elif type(tensor).__name__ != "PyCapsule":
            raise TritonModelException(
                "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and "
                "`__dlpack_device__` attributes"
            )
        try:
            array, bfloat16 = from_capsule(tensor)
        except (BufferError, RuntimeError, ValueError) as error:
            raise TritonModelException(f"the DLPack capsule of '{name}' cannot be read: {error}") from None
        datatype = Datatype.BF16 if bfloat16 else datatype_of(array.dtype)
        if datatype is None:
            raise TritonModelException(
                f"DLPack tensor '{name}' has elements of type {array.dtype}, which no tensor has"
            )
        if not name:
            raise TritonModelException(_UNNAMED)
        return Tensor.of(text(name), datatype, array)

    def to_part(self, array: NDArray[Any]) -> tuple[Part, Buffer]:
        """In its binary form, which shares the memory of the array if that is in row-major order, and no BYTES.

        Args:
            array: its own, in whatever shape.
        """
        data: Buffer
        if self._datatype is Datatype.BYTES:
            data = to_binary(array)
        elif not array.size:
            data = b""
        else:
            data = np.ascontiguousarray(array, self._datatype.dtype).data.cast("B")
        return Part(self._name, self._datatype, array.shape, len(data)), data

    @property
    def datatype(self) -> Datatype:
        """As the protocol names it."""
        return self._datatype

    @property
    def array(self) -> NDArray[Any]:
        """As `as_numpy`; of BF16 the bits."""
        return self._array
