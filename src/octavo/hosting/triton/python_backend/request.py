"""`pb_utils.InferenceRequest`: as a model gets them, and as it makes them for other models."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any, Protocol

from msgspec.structs import replace

from octavo.hosting.errors import InferenceError
from octavo.hosting.lanes import Turn
from octavo.hosting.triton.python_backend.errors import TritonModelException
from octavo.hosting.triton.python_backend.host import required
from octavo.hosting.triton.python_backend.parameters import checked, text
from octavo.hosting.triton.python_backend.sender import InferenceResponseSender
from octavo.hosting.triton.python_backend.tensor import Tensor
from octavo.hosting.wire import Details

RELEASE_ALL, RELEASE_RESCHEDULE = 1, 2
"""`TRITONSERVER_REQUEST_RELEASE_ALL`, `TRITONSERVER_REQUEST_RELEASE_RESCHEDULE`."""


class MemoryType(IntEnum):
    """Where a tensor is."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


class PreferredMemory:
    """Where a model would like to have the outputs of another one. It gets them in the CPU's memory, as all are."""

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = MemoryType(preferred_memory_type)
        self.preferred_device_id = int(preferred_device_id)


class InferenceTrace:
    """What traces a request: what it makes of other models is traced with it, if they are given this.

    Attributes:
        number: by which the server knows it; 0 if the request is not traced.
    """

    __slots__ = ("_context", "number")

    def __init__(self, context: str | None = None, number: int = 0) -> None:
        self._context = context
        self.number = number

    def get_context(self) -> str | None:
        """The context that a span of the model's own would continue, as JSON; None if nothing is traced."""
        return self._context


class InferenceRequest:
    """A request for a model.

    Args:
        correlation_id: of the sequence that it belongs to; 0 or empty for none.
        requested_output_names: none for all.
        model_version: -1 for the newest one.
        flags: `TRITONSERVER_REQUEST_FLAG_SEQUENCE_START` and `..._END`.
        timeout: microseconds that it may wait; 0 for ever.

    Raises:
        TypeError, TritonModelException: arguments of other types.
    """

    __slots__ = (
        *("_details", "_inputs", "_model_name", "_model_version", "_names", "_preferred_memory", "_timeout", "_trace"),
        "__weakref__",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError("InferenceRequest needs inputs, requested_output_names and model_name")
        if isinstance(correlation_id, bool) or not isinstance(correlation_id, int | str):
            raise TritonModelException("Correlation ID must be integer or string")
        self._inputs = list(inputs)
        for each in self._inputs:
            if not isinstance(each, Tensor):
                raise TypeError(f"InferenceRequest(inputs: list of Tensor), not of {type(each).__name__}")
        if trace is not None and not isinstance(trace, InferenceTrace):
            raise TypeError(f"InferenceRequest(trace: InferenceTrace), not {type(trace).__name__}")
        traced = 0 if trace is None else trace.number
        self._details: Details | None = Details(
            text(request_id), correlation_id, flags, checked(parameters), trace=traced
        )
        self._names: Collection[str] = {text(each) for each in requested_output_names}
        self._model_name, self._model_version = text(model_name), int(model_version)
        self._timeout = int(timeout)
        self._preferred_memory = preferred_memory
        self._trace = trace

    def inputs(self) -> list[Tensor]:
        """The tensors."""
        return self._inputs

    def request_id(self) -> str:
        """What its client calls it."""
        return self._details.id if self._details is not None else ""

    def correlation_id(self) -> int | str:
        """Of the sequence that it belongs to; 0 for none."""
        return self._details.sequence if self._details is not None else 0

    def flags(self) -> int:
        """Whether it is the first, the last, or both of its sequence."""
        return self._details.flags if self._details is not None else 0

    def set_flags(self, flags: int) -> None:
        """Say whether it is the first, the last, or both of its sequence."""
        self._details = replace(self.details, flags=flags)

    def timeout(self) -> int:
        """Microseconds that it may wait; 0 for ever."""
        return self._timeout

    def parameters(self) -> str:
        """What it says beside its tensors, as JSON."""
        return json.dumps(self._details.parameters) if self._details is not None else "{}"

    def requested_output_names(self) -> set[str]:
        """The outputs that are wanted."""
        return set(self._names)

    def trace(self) -> InferenceTrace:
        """What traces it."""
        return self._trace or InferenceTrace()

    def model_name(self) -> str:
        """The model that it is for."""
        return self._model_name

    def model_version(self) -> int:
        """Of the model; -1 for the newest one."""
        return self._model_version

    def preferred_memory(self) -> PreferredMemory | None:
        """Where the outputs are wanted."""
        return self._preferred_memory

    @property
    def details(self) -> Details:
        """What it says beside its tensors."""
        return self._details or Details()

    def exec(self, decoupled: bool = False) -> Any:
        """Ask the model, and wait.

        Args:
            decoupled: whether it may have any number of responses.

        Returns:
            The response, which may be an error; an iterator of them if `decoupled`.

        Raises:
            TritonModelException: no model can be asked now.
        """
        return required().execute(self, decoupled=decoupled)

    def async_exec(self, decoupled: bool = False) -> "asyncio.Future[Any]":
        """The same, to be awaited in the running event loop."""
        return required().execute_async(self, decoupled=decoupled)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return False

    def set_release_flags(self, flags: int) -> None:
        """Say what becomes of a request when `execute` returns. This one is the model's own."""
        raise TritonModelException("a request that a model has made is released by nobody else")

    def get_response_sender(self) -> InferenceResponseSender:
        """What sends its responses. This one is answered by another model."""
        raise TritonModelException(
            "Unable to send response. Response sender has no reference to the decoupled state of the model."
        )


class Origin(Protocol):
    """Where a request has come from."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        ...

    def sender(self) -> InferenceResponseSender:
        """What sends its responses. It is asked for once."""
        ...

    def fail(self, error: InferenceError) -> None:
        """There will be no response any more, and why."""
        ...


class IncomingRequest(InferenceRequest):
    """A request that is computed.

    Attributes:
        find: says where it has come from, once that is asked. release: what becomes of it when `execute` returns.
        response_sender: if the model has asked for it.
    """

    __slots__ = ("_origin", "find", "release", "response_sender")

    def __init__(self, inputs: list[Tensor], names: Collection[str], timeout: float, details: Details | None) -> None:
        self._inputs = inputs
        self._names = names
        self._timeout = round(timeout * 1e6) if timeout else 0
        self._details = details
        self._origin: Origin | None = None
        self.find: Callable[[], Origin] | None = None
        self.release = RELEASE_ALL
        self.response_sender: InferenceResponseSender | None = None

    @property
    def origin(self) -> Origin:
        """Where it has come from."""
        if self._origin is None:
            assert self.find is not None
            self._origin = self.find()
        return self._origin

    def take_turn(self, turn: Turn[Any], controls: Sequence[Tensor]) -> None:
        """It is computed as a request of a sequence, for which the model has control tensors."""
        names = {each.name() for each in controls}
        self._inputs = [*(each for each in self._inputs if each.name() not in names), *controls]
        course, was = turn.of, self._details or Details()
        if course is not None and (was.sequence, was.flags) != (course.public_id, turn.flags):
            self._details = replace(was, sequence=course.public_id, flags=turn.flags)

    def trace(self) -> InferenceTrace:
        """What traces it."""
        return InferenceTrace(number=self.details.trace)

    def model_name(self) -> str:
        """The model that it is for: the one that gets it."""
        raise TritonModelException("a request that is computed is for the model that computes it")

    def model_version(self) -> int:
        """As `model_name`."""
        raise TritonModelException("a request that is computed is for the model that computes it")

    def preferred_memory(self) -> PreferredMemory | None:
        """Where the outputs are wanted: it does not say."""
        return None

    @property
    def names(self) -> Collection[str]:
        """As `requested_output_names`."""
        return self._names

    def is_cancelled(self) -> bool:
        """Whether its client has left, or been answered."""
        return self.origin.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        """Say what becomes of it when `execute` returns: with `TRITONSERVER_REQUEST_RELEASE_RESCHEDULE` it is computed
        again, with others."""
        if flags not in (RELEASE_ALL, RELEASE_RESCHEDULE):
            raise TritonModelException(f"there are no release flags {flags}")
        self.release = flags

    def get_response_sender(self) -> InferenceResponseSender:
        """What sends its responses."""
        if self.response_sender is None:
            self.response_sender = self.origin.sender()
        return self.response_sender
