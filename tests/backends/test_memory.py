"""Memory of packed weights: no array shares any with another one."""

from collections.abc import Callable
from types import TracebackType

import numpy as np
import pytest

from octavo.backends.cpu import memory


class Interrupted:
    """A lock after whose release another thread comes first."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()


def test_threads_that_come_between_get_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Interrupted()
    monkeypatch.setattr(memory, "Lock", lambda: lock)
    monkeypatch.setattr(memory, "SLAB_BYTES", 1024)
    slabs = memory.Slabs()
    arrays = [slabs.zeros(190)]
    for _ in range(8):  # the slab is used up somewhere on the way
        lock.meanwhile = lambda: arrays.append(slabs.zeros(192))
        arrays.append(slabs.zeros(64))
    arrays += [slabs.zeros(64) for _ in range(16)]
    for index, array in enumerate(arrays):
        assert array.ctypes.data % memory.LINE == 0
        array[:] = index
    assert all((array == index).all() for index, array in enumerate(arrays))


def test_what_is_too_large_for_a_slab_has_its_own() -> None:
    slabs = memory.Slabs()
    large = slabs.zeros(3, memory.SLAB_BYTES)
    assert large.shape == (3, memory.SLAB_BYTES)
    assert not np.shares_memory(large, slabs.zeros(64))
