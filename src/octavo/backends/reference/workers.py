"""Threads that share a piece of work. numpy releases the interpreter's lock while it computes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")


class Workers:
    """`count` threads, the caller's among them.

    They replace the threads inside BLAS, which wait for each other by spinning: beside another busy process on the same
    cores those become tens of times slower. Start the process with OPENBLAS_NUM_THREADS=1, else the two kinds get in
    each other's way, and a BLAS may cut sums into other pieces than with one thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="octavo-worker")

    def run(self, work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
        """Call `work` with every piece; return when all are done. Pieces must not depend on each other."""

        def each(share: Sequence[Piece]) -> None:
            for piece in share:
                work(piece)

        helpers = range(1, min(self.count, len(pieces)))
        futures = [self._pool.submit(each, pieces[helper :: self.count]) for helper in helpers]
        each(pieces[:: self.count])
        for future in futures:
            future.result()
