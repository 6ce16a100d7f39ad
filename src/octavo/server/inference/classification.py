"""Triton's classification extension: the best classes of an output instead of all of its values."""

from collections.abc import Sequence
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Encoded, Place, Tensor

MAX_ELEMENTS = 1_000_000
"""Of an item's output."""

_UNSUPPORTED = frozenset({Datatype.BOOL, Datatype.FP16, Datatype.BF16, Datatype.BYTES})


def classify(output: Encoded, classes: int, place: Place, *, batched: bool, labels: Sequence[str] = ()) -> Encoded:
    """The indices of the largest values with these, as BYTES "VALUE:INDEX" or "VALUE:INDEX:LABEL", best first.

    Args:
        classes: so many of each item, or all of them if there are fewer.
        batched: whether the first dimension is over items; otherwise all of the tensor is one's.

    Raises:
        InferenceError: elements that have no order, or too many of them.
    """
    if output.datatype in _UNSUPPORTED:
        raise InferenceError(f"class result not available for output due to unsupported type '{output.datatype}'")
    values = output.decode(place).array
    items = values.shape[0] if batched and values.ndim else 1
    rows = values.reshape(items, values.size // items) if items else values.reshape(0, 0)
    if rows.shape[1] > MAX_ELEMENTS:
        raise InferenceError(
            f"classification output tensor too large: '{place.input}' has {rows.shape[1]} elements an item, more than "
            f"{MAX_ELEMENTS}"
        )
    count = min(classes, rows.shape[1])
    found = np.empty((items, count), object)
    for row, values_of in enumerate(rows):
        found[row] = _best(values_of, count, labels)
    return Encoded.of(Tensor(Datatype.BYTES, found if batched and values.ndim else found.reshape(count)))


def _best(values: NDArray[Any], count: int, labels: Sequence[str]) -> list[bytes]:
    ranked = np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf) if values.dtype.kind == "f" else values
    # Of equal values the first one first, whatever the order of a type without negative values.
    best = (len(values) - 1 - np.argsort(ranked[::-1], kind="stable")[::-1])[:count]
    write = "{:f}:{}".format if values.dtype.kind == "f" else "{}:{}".format
    texts = starmap(write, zip(values[best].tolist(), best.tolist(), strict=True))
    return [
        (f"{text}:{labels[index]}" if index < len(labels) and labels[index] else text).encode()
        for text, index in zip(texts, best.tolist(), strict=True)
    ]
