"""Memory and streams of CUDA's runtime library, by ctypes: TensorRT brings no way to them of its own."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo.errors import ConfigError

_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2


class CudaError(RuntimeError):
    """A call to CUDA that failed."""


class Cuda:
    """One GPU."""

    def __init__(self, library: Any, number: int) -> None:
        self._library = library
        self._number = number
        library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def on(cls, number: int, path: Path) -> "Cuda":
        """That GPU. Raises ConfigError: there is no such GPU, or no CUDA; `path` is what needs it."""
        library = _library()
        if library is None:
            raise ConfigError(f"{path.name} needs CUDA's runtime library, and {_NAMES[-1]} is not found")
        count = ctypes.c_int(0)
        library.cudaGetDeviceCount(ctypes.byref(count))
        if number >= count.value:
            there = f"{count.value or 'no'} GPU{'' if count.value == 1 else 's'}"
            raise ConfigError(f"{path.name} needs GPU {number}, and CUDA finds {there}", "device")
        cuda = cls(library, number)
        cuda.use()
        return cuda

    def use(self) -> None:
        """Let this thread use it."""
        self.check(self._library.cudaSetDevice(self._number))

    def check(self, status: int) -> None:
        """Raises CudaError."""
        if status:
            raise CudaError(f"CUDA failed: {self._library.cudaGetErrorString(status).decode()}")

    def stream(self) -> int:
        """A new stream; it lives as long as the process."""
        handle = ctypes.c_void_p()
        self.check(self._library.cudaStreamCreate(ctypes.byref(handle)))
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait for what a stream has to do."""
        self.check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    def allocate(self, size: int) -> int:
        """The address of that many bytes."""
        address = ctypes.c_void_p()
        self.check(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)))
        return address.value or 0

    def free(self, address: int) -> None:
        """Give them back."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        """Begin to copy."""
        self.check(
            self._library.cudaMemcpyAsync(
                ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, ctypes.c_void_p(stream)
            )
        )


class Buffer:
    """Memory of a GPU."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.address = cuda.allocate(size)
        self.size = size
        self._cuda = cuda

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.free(self.address)

    def write(self, array: NDArray[Any], stream: int) -> None:
        """Copy an array to it."""
        self._cuda.copy(self.address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def read(self, array: NDArray[Any], stream: int) -> None:
        """Copy it to an array, which has it when the stream has been waited for."""
        self._cuda.copy(array.ctypes.data, self.address, array.nbytes, _TO_HOST, stream)


def _library() -> Any:
    """As the system finds it, or where pip installs it."""
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    installed = importlib.util.find_spec("nvidia")  # a namespace that many packages share
    for folder in (installed.submodule_search_locations or ()) if installed else ():
        for found in sorted(Path(folder).glob("**/libcudart.so*")):
            return ctypes.CDLL(str(found))
    return None
