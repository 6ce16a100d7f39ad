"""Memory that begins on a cache line, so that no vector that the kernels load straddles two."""

from math import prod
from threading import Lock

import numpy as np
from numpy.typing import NDArray

LINE = 64

SLAB_BYTES = 2**25


def aligned_zeros(*shape: int) -> NDArray[np.uint8]:
    """uint8 zeros of that shape. The system gives memory as it is first written."""
    size = prod(shape)
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].reshape(shape)


class Slabs:
    """Many arrays in a few large pieces of memory.

    numpy asks the system for huge pages where an array is large enough to hold some: reading all weights then takes
    hundreds of address translations instead of tens of thousands.
    """

    def __init__(self) -> None:
        self._slab = np.zeros(0, np.uint8)
        self._used = 0
        self._lock = Lock()  # weights are packed on several threads

    def zeros(self, *shape: int) -> NDArray[np.uint8]:
        """uint8 zeros of that shape, as `aligned_zeros` gives them."""
        size = prod(shape)
        if size > SLAB_BYTES // 4:
            return aligned_zeros(*shape)
        with self._lock:
            if self._used + size > len(self._slab):
                self._slab, self._used = aligned_zeros(SLAB_BYTES), 0
            start = self._used
            self._used += -(-size // LINE) * LINE
            return self._slab[start : start + size].reshape(shape)
