"""A Python model as a computation: requests become those that its `execute` gets, and its responses theirs."""

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.hosting.computation import Answer, Task
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.sequence_inputs import ControlTensor, SequenceInputs
from octavo.hosting.tensors import Place, array_from_bytes, element_count
from octavo.hosting.triton.description import Description
from octavo.hosting.triton.python_backend.model import PythonModel
from octavo.hosting.triton.python_backend.request import RELEASE_RESCHEDULE, IncomingRequest
from octavo.hosting.triton.python_backend.reshapes import Reshapes
from octavo.hosting.triton.python_backend.response import InferenceResponse
from octavo.hosting.triton.python_backend.sender import InferenceResponseSender
from octavo.hosting.triton.python_backend.tensor import Tensor
from octavo.hosting.wire import Call, Infer, Part

log = logging.getLogger(__name__)

Result = Answer | InferenceError | None


_KEPT_FORMS = 1024


@dataclass(frozen=True, slots=True)
class _Form:
    """Requests with inputs of the same sizes.

    Attributes:
        inputs: each with its place, for errors, and whether its bytes are an array's of that shape without a look at
            them.
        items, kind: as a `Task` has them.
    """

    inputs: tuple[tuple[Part, Place, bool], ...]
    items: int
    kind: Hashable


class PythonComputation:
    """A model that is initialized.

    Args:
        instance: what Triton calls this instance of it.
        sequences: makes the control tensors, of a model of sequences.

    Attributes:
        decoupled: whether requests may have any number of responses.
    """

    def __init__(
        self, model: PythonModel, description: Description, instance: str, sequences: SequenceInputs | None = None
    ) -> None:
        self._model = model
        self._instance = instance
        self._batched = description.max_batch_size > 0
        self._merges = description.merges
        self._places = {each.name: Place(each.name, description.name) for each in description.input}
        self._ragged = {each.name for each in description.input if each.allow_ragged_batch}
        self._outputs = {each.name for each in description.output}
        self._reshapes = Reshapes(description)
        self._forms: dict[tuple[Part, ...], _Form] = {}
        self._sequences = sequences
        self.decoupled = description.model_transaction_policy.decoupled

    def wait_with(self, wait: Callable[["Future[Any]"], None]) -> None:
        """Have that wait for the model's asynchronous code."""
        self._model.wait = wait

    def runs_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is where the model's asynchronous code runs."""
        return self._model.runs_in(loop)

    @property
    def checks_readiness(self) -> bool:
        """Whether the model's code says whether it is ready."""
        return self._model.checks_readiness

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            return self._model.is_ready()
        except BaseException as error:
            log.error("is_ready of %s failed", self._instance, exc_info=error)
            return False

    def read(self, message: Infer | Call, data: memoryview) -> Task:
        """Make a request of what a frontend sends. Raises InferenceError: it is to blame."""
        assert isinstance(message, Infer), "frontends know that it takes no bodies"
        if data.readonly:  # of what came through the socket; models may write to what they get
            data = memoryview(bytearray(data))
        form = self._forms.get(message.parts) or self._form(message.parts)
        tensors, at, reshapes = [], 0, self._reshapes
        for part, place, plain in form.inputs:
            name, datatype, end = part.name, part.datatype, at + part.size
            if plain:
                array = np.frombuffer(data[at:end], datatype.dtype).reshape(part.shape)
            else:
                array = array_from_bytes(datatype, part.shape, data[at:end], place)
            tensors.append(Tensor.of(name, datatype, reshapes.given(name, array) if reshapes.inputs else array))
            at = end
        request = IncomingRequest(tensors, message.outputs or self._outputs, message.timeout, message.details)
        return Task(request, form.items, form.kind if self._merges else message.number, message.outputs)

    def _form(self, parts: tuple[Part, ...]) -> "_Form":
        """What is known of inputs like these: those of most requests differ in their bytes alone."""
        inputs = []
        for part in parts:
            place = self._places[part.name]
            size = element_count(part.shape, place) * part.datatype.itemsize
            plain = part.datatype not in (Datatype.BYTES, Datatype.BOOL) and size == part.size
            inputs.append((part, place, plain))
        # What is computed together has inputs of the same types and sizes but for the batch.
        kind = tuple([(each.name, None if each.name in self._ragged else each.shape[1:]) for each in parts])
        if len(self._forms) >= _KEPT_FORMS:
            self._forms.clear()
        items = parts[0].shape[0] if self._batched and parts else 1
        form = self._forms[parts] = _Form(tuple(inputs), items, kind)
        return form

    def compute(self, tasks: Sequence[Task]) -> list[Answer | InferenceError]:
        """Compute requests that nobody has made: before the model is ready. What senders send is dropped."""
        requests: list[IncomingRequest] = [task.content for task in tasks]
        for each in requests:
            each.find = partial(Nowhere, decoupled=self.decoupled)
        return [Answer(()) if each is None else each for each in self.execute(requests)]

    def stream(self, task: Task) -> Iterator[Answer]:
        """Its server sends what it streams."""
        raise AssertionError("responses of a Python model are sent by the model")

    def execute_sequences(self, requests: list[IncomingRequest], tasks: Sequence[Task]) -> list[Result]:
        """As `execute`, of requests of sequences. Places of the batch that none of them has get one that does not
        count: its READY is false."""
        assert self._sequences is not None
        rows: list[IncomingRequest] = []
        for request, task in zip(requests, tasks, strict=True):
            rows += [self._empty(request, self._sequences.of(None)) for _ in range(len(rows), task.place)]
            assert task.turn is not None
            request.take_turn(task.turn, [Tensor.of(*each) for each in self._sequences.of(task.turn)])
            rows.append(request)
        results = self.execute(rows)
        return [results[task.place] for task in tasks]

    def _empty(self, request: IncomingRequest, controls: Sequence[ControlTensor]) -> IncomingRequest:
        """A request that nobody has made, with tensors of the shapes of another one's."""
        given = [each for each in request.inputs() if each.name() in self._places]
        tensors = [Tensor.of(each.name(), each.datatype, np.zeros_like(each.array)) for each in given]
        empty = IncomingRequest([*tensors, *(Tensor.of(*each) for each in controls)], request.names, 0.0, None)
        empty.find = partial(Nowhere, decoupled=self.decoupled)
        return empty

    def execute(self, requests: list[IncomingRequest]) -> list[Result]:
        """Compute a batch. None stands for a request that is answered by its response sender, or not yet."""
        try:
            return self._results(requests, self._model.call(requests, partial(self._fail, requests)))
        except BaseException as error:  # a model ends itself, not the server
            failure = self.failure(error)
            return [failure] * len(requests)

    def _results(self, requests: list[IncomingRequest], returned: Any) -> list[Result]:
        if returned is None:
            return [None] * len(requests)
        if self.decoupled:
            raise ResponseError(
                f"Python model '{self._instance}' is using the decoupled mode and the execute function must return "
                "None."
            )
        if not isinstance(returned, list):
            raise ResponseError(f"Expected a list in the execute return, found type '{type(returned)}'.")
        if len(returned) != len(requests):
            raise ResponseError(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(returned)}"
            )
        return [self._result(*each) for each in zip(requests, returned, strict=True)]

    def _result(self, request: IncomingRequest, response: object) -> Result:
        """What comes of a request. Raises ResponseError, TritonModelException: that cannot be the response."""
        if response is None:
            return None
        if request.release == RELEASE_RESCHEDULE:
            raise ResponseError(
                "Expected a None object in the execute function return list for reschduled request, found type "
                f"'{type(response)}'."
            )
        if not isinstance(response, InferenceResponse):
            raise ResponseError(
                "Expected an 'InferenceResponse' object in the execute function return list, found type "
                f"'{type(response)}'."
            )
        if request.response_sender is not None:
            request.response_sender.note(True, final=True)
        return self.answer(request.names, response)

    def answer(self, wanted: Collection[str], response: InferenceResponse) -> Answer | InferenceError:
        """A response as it is sent, with the outputs that are wanted."""
        error = response.error()
        if error is not None:
            return error.to_inference_error()
        try:
            return response.to_answer(wanted, self._reshapes)
        except Exception as unwritten:  # objects of the model's that cannot be
            return self.failure(unwritten)

    def _fail(self, requests: list[IncomingRequest], error: BaseException) -> None:
        """Code has failed when `execute` had returned already."""
        failure = self.failure(error)
        for each in requests:
            each.origin.fail(failure)

    def failure(self, error: BaseException) -> InferenceError:
        """What requests are told of an exception of the model's. The log has the rest."""
        returned = isinstance(error, ResponseError)
        said = str(error) if returned else f"{type(error).__name__}: {error}"
        log.error("%s failed: %s", self._instance, said, exc_info=None if returned else error)
        return InferenceError(
            f"Failed to process the request(s) for model '{self._instance}', message: {said:.4000}", Code.INTERNAL
        )


class Nowhere:
    """Where a request has come from that nobody has made. What its model says to it is dropped."""

    def __init__(self, *, decoupled: bool) -> None:
        self._decoupled = decoupled

    def is_cancelled(self) -> bool:
        """Nobody cancels it."""
        return False

    def sender(self) -> InferenceResponseSender:
        """As that of others."""
        return InferenceResponseSender(self, decoupled=self._decoupled)

    def send(self, response: InferenceResponse | None, *, final: bool) -> None:
        """Drop a response."""

    def fail(self, error: InferenceError) -> None:
        """Nobody waits for it."""


class ResponseError(Exception):
    """What `execute` returned is not what it has to return."""
