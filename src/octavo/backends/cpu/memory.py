"""Memory that begins on a cache line, so that no vector that the kernels load straddles two."""

from math import prod

import numpy as np
from numpy.typing import NDArray

LINE = 64


def aligned_zeros(*shape: int) -> NDArray[np.uint8]:
    """uint8 zeros of that shape. The system gives memory as it is first written."""
    size = prod(shape)
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].reshape(shape)
