"""What this machine can do at best, measured: the roofline that benchmarks are held against."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read from memory and floating-point operations done per second."""

    bytes_per_second: float
    flops_per_second: float


def measure_ceilings() -> Ceilings:
    """Measure with the threads and the library that the backend computes with; takes about a second.

    Memory: a matrix far larger than the caches times a vector, 2 operations per 4 bytes. Arithmetic: a square product.
    """
    tall = np.ones((32768, 2048), np.float32)
    vector = np.ones(2048, np.float32)
    square = np.ones((1024, 1024), np.float32)
    read = _best_seconds(lambda: tall @ vector)
    multiply = _best_seconds(lambda: square @ square)
    return Ceilings(tall.nbytes / read, 2 * 1024**3 / multiply)


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
