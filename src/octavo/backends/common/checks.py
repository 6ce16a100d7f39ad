"""Whether a checkpoint has what a graph needs, in numbers that can be computed with."""

from collections.abc import Mapping

from octavo.errors import CheckpointError
from octavo.graph.ops import Graph
from octavo.weights.tensor import Tensor

_NAMED_FAULTS = 4
"""Weights that an error names, of perhaps hundreds that are wrong."""


def finite(tensor: Tensor) -> Tensor:
    """A weight whose values are all finite.

    Raises:
        CheckpointError: some are not: every answer would be nonsense.
    """
    if not tensor.is_finite():
        raise CheckpointError(f"weight {tensor.name} ({tensor.format}) has values that are not finite")
    return tensor


def check_weights(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Compare a checkpoint with what a graph needs.

    Raises:
        CheckpointError: weights are missing or have other shapes.
    """
    wanted = graph.parameters()
    found = {name: tensors[name].shape for name in wanted if name in tensors}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [
        f"{name} is {list(shape)} instead of {list(wanted[name])}"
        for name, shape in found.items()
        if shape != wanted[name]
    ]
    if faults:
        more = f", and {len(faults) - _NAMED_FAULTS} more" if len(faults) > _NAMED_FAULTS else ""
        raise CheckpointError(
            f"{len(faults)} of {len(wanted)} weights do not fit the config: {', '.join(faults[:_NAMED_FAULTS])}{more}"
        )
