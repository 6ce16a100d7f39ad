"""Weight files as memory maps, and the check that no two tensors claim the same bytes."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of `path` as a read-only memory map, uint8 [size].

    Raises:
        CheckpointError: the file is missing, empty or unreadable.
    """
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty; fetch it again")
        return np.memmap(path, np.uint8, "r").view(np.ndarray)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def refuse_overlap(path: Path, spans: Iterable[tuple[int, int, str]]) -> None:
    """Raise `CheckpointError` if two of the (start, end, tensor name) spans share a byte: the header is corrupt."""
    for (_, end, name), (start, _, other) in pairwise(sorted(spans)):
        if start < end:
            raise CheckpointError(
                f"{path}: corrupt header: {name!r} ends at byte {end}, after {other!r} starts at {start}"
            )
