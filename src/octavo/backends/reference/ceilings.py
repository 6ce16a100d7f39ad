"""The machine's ceilings as numpy reaches them."""

import time
from collections.abc import Callable

import numpy as np

from octavo.backends.reference.workers import Workers


def measure_ceilings(threads: int) -> tuple[float, float]:
    """Bytes read from memory and float32 operations per second; takes about a second.

    Memory: a matrix far larger than the caches times a vector, 2 operations per 4 bytes. Arithmetic: a square product.
    """
    workers = Workers(threads)
    numbers = range(threads)
    tall = [np.ones((16384, 2048), np.float32) for _ in numbers]
    vector = np.ones(2048, np.float32)
    square = np.ones((768, 768), np.float32)
    read = _best_seconds(lambda: workers.run(lambda thread: np.matmul(tall[thread], vector), numbers))
    multiply = _best_seconds(lambda: workers.run(lambda _: np.matmul(square, square), numbers))
    return threads * tall[0].nbytes / read, threads * 2 * 768**3 / multiply


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
