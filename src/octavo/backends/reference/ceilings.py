"""What this machine can do at best, measured: the roofline that benchmarks are held against."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from octavo.backends.common.cores import physical_cores
from octavo.backends.reference.workers import Workers


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read from memory and floating-point operations done per second."""

    bytes_per_second: float
    flops_per_second: float


def measure_ceilings() -> Ceilings:
    """Measure with one thread for each core, in float32; takes about a second.

    Memory: a matrix far larger than the caches times a vector, 2 operations per 4 bytes. Arithmetic: a square product.
    """
    workers = Workers(physical_cores())
    threads = range(workers.count)
    tall = [np.ones((16384, 2048), np.float32) for _ in threads]
    vector = np.ones(2048, np.float32)
    square = np.ones((768, 768), np.float32)
    read = _best_seconds(lambda: workers.run(lambda thread: np.matmul(tall[thread], vector), threads))
    multiply = _best_seconds(lambda: workers.run(lambda _: np.matmul(square, square), threads))
    return Ceilings(workers.count * tall[0].nbytes / read, workers.count * 2 * 768**3 / multiply)


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
