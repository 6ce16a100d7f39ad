"""Shapes that a model sees other than its clients do: `reshape` of its configuration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.signature import ANY
from octavo.hosting.triton.description import Description


class Reshapes:
    """Of the inputs and outputs of one model.

    Attributes:
        inputs, outputs: dimensions as they are, and as they are to be.
    """

    def __init__(self, description: Description) -> None:
        self._batched = description.max_batch_size > 0
        self.inputs = {each.name: (each.dims, each.own_dims) for each in description.input if each.reshape is not None}
        self.outputs = {
            each.name: (each.own_dims, each.dims) for each in description.output if each.reshape is not None
        }

    def given(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An input as the model takes it."""
        dims = self.inputs.get(name)
        return array if dims is None else self._between(array, *dims)

    def got(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An output as clients get it. Raises ValueError: it has not the shape that it is to have."""
        dims = self.outputs.get(name)
        return array if dims is None else self._between(array, *dims)

    def _between(self, array: NDArray[Any], dims: Sequence[int], wanted: Sequence[int]) -> NDArray[Any]:
        """Dimensions of any size keep theirs, in their order."""
        shape = array.shape[1:] if self._batched else array.shape
        free = iter([size for size, fixed in zip(shape, dims, strict=False) if fixed == ANY])
        result = tuple(next(free, 1) if size == ANY else size for size in wanted)
        return np.reshape(array, (array.shape[0], *result) if self._batched else result)
