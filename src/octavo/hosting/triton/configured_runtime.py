"""A runtime's model as its configuration has it: with the names, shapes and labels that clients see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.runtime import Runtime
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.triton.description import Description
from octavo.hosting.triton.labels import read_labels

Arrays = Mapping[str, NDArray[Any]]


class ConfiguredRuntime:
    """See `Runtime`.

    Args:
        runtime: what computes. names: what inputs and outputs are called there.
        folder: of the model, where labels are.
    """

    def __init__(
        self, runtime: Runtime, description: Description, names: tuple[Mapping[str, str], ...], folder: Path
    ) -> None:
        self._runtime = runtime
        self._input_names, self._output_names = names
        self._batched = description.max_batch_size > 0
        self._given = {each.name: each for each in description.input if each.reshape is not None}
        self._gives = {each.name: each for each in description.output}
        scalars = {each.name for each in runtime.inputs if each.dims == () and not runtime.batches}
        self._scalars = {name for name, own in self._input_names.items() if own in scalars}
        self._reshaped = {each.name for each in description.output if each.reshape is not None}
        self._reshaped |= {
            name
            for name, own in self._output_names.items()
            if any(each.name == own and each.dims == () and not runtime.batches for each in runtime.outputs)
        }
        self._as_it_is = not self._given and not self._reshaped and not self._scalars
        self._same_names = all(name == own for each in names for name, own in each.items())
        self.platform = runtime.platform
        self.batches = self._batched
        self.concurrent = runtime.concurrent
        self.inputs = input_specs(description)
        self.outputs = output_specs(description, folder)

    def execute(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `Runtime.execute`."""
        if self._as_it_is and self._same_names:
            return self._runtime.execute(inputs, outputs)
        given = {self._input_names[name]: self._as_model_takes_it(name, each) for name, each in inputs.items()}
        results = self._runtime.execute(given, [self._output_names[name] for name in outputs])
        return {name: self._as_clients_get_it(name, results[self._output_names[name]]) for name in outputs}

    def _as_model_takes_it(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in self._scalars:
            return array.reshape(())
        each = self._given.get(name)
        return array if each is None else self._between(array, each.dims, each.own_dims)

    def _as_clients_get_it(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        each = self._gives[name]
        return self._between(array, each.own_dims, each.dims) if name in self._reshaped else array

    def _between(self, array: NDArray[Any], dims: Sequence[int], wanted: Sequence[int]) -> NDArray[Any]:
        """Bring an array of some dimensions to others. Those of any size keep theirs, in their order."""
        shape = array.shape[1:] if self._batched else array.shape
        free = iter([size for size, fixed in zip(shape, dims, strict=False) if fixed == ANY])
        result = tuple(next(free, 1) if size == ANY else size for size in wanted)
        return np.reshape(array, (array.shape[0], *result) if self._batched else result)


def input_specs(description: Description) -> tuple[TensorSpec, ...]:
    """The inputs, as requests are checked against them."""
    return tuple(
        TensorSpec(
            name=each.name,
            datatype=each.datatype,
            dims=each.dims,
            optional=each.optional,
            ragged=each.allow_ragged_batch,
        )
        for each in description.input
    )


def output_specs(description: Description, folder: Path) -> tuple[TensorSpec, ...]:
    """The outputs, with the labels of their classes. Raises ConfigError: a file of labels cannot be read."""
    return tuple(
        TensorSpec(
            name=each.name,
            datatype=each.datatype,
            dims=each.dims,
            labels=read_labels(each.name, each.label_filename, folder),
        )
        for each in description.output
    )
