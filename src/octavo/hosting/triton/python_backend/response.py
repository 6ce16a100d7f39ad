"""`pb_utils.InferenceResponse`."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from octavo.hosting.computation import Answer
from octavo.hosting.triton.python_backend.errors import TritonError, TritonModelException
from octavo.hosting.triton.python_backend.parameters import Parameters, checked
from octavo.hosting.triton.python_backend.reshapes import Reshapes
from octavo.hosting.triton.python_backend.tensor import Tensor


class InferenceResponse:
    """What comes of a request: tensors, or an error.

    Raises:
        TypeError, TritonModelException: arguments of other types.
    """

    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._output_tensors = list(output_tensors)
        for each in self._output_tensors:
            if not isinstance(each, Tensor):
                raise _no_tensor(each)
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"InferenceResponse(error: TritonError), not {type(error).__name__}")
        self._error = error
        self._parameters: Parameters | None = checked(parameters) if parameters else None

    def output_tensors(self) -> list[Tensor]:
        """The tensors; none of an error."""
        return self._output_tensors

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error; None if it is none."""
        return self._error

    def parameters(self) -> str:
        """What it says beside its tensors, as JSON."""
        return json.dumps(self._parameters or {})

    def add_parameters(self, parameters: Parameters | None) -> None:
        """Say what another model says beside its tensors."""
        self._parameters = parameters

    def to_answer(self, wanted: Collection[str], reshapes: Reshapes) -> Answer:
        """The tensors that are wanted, as they are sent. Raises TypeError, ValueError: they cannot be."""
        parts, buffers = [], []
        for each in self._output_tensors:
            name, array = each.name(), each.array
            if name in wanted:
                part, data = each.to_part(reshapes.got(name, array) if reshapes.outputs else array)
                parts.append(part)
                buffers.append(data)
        return Answer(buffers, tuple(parts), "", self._parameters)


def _no_tensor(given: object) -> Exception:
    if given is None:
        return TritonModelException("Output tensor for inference response should not be empty.")
    return TypeError(f"InferenceResponse(output_tensors: list of Tensor), not of {type(given).__name__}")
