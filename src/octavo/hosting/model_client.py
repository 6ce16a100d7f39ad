"""What a frontend can ask of any hosted model: of one that processes compute, and of one that is made of others."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from octavo.hosting.errors import InferenceError
from octavo.hosting.inference import Body, BodyCall, Inference, Outline, Outlined, Outputs, Statistics
from octavo.hosting.info import HostedInfo
from octavo.hosting.pending import Pending, Result
from octavo.hosting.tensors import Place
from octavo.hosting.wire import Family, parts_of
from octavo.worker.control import WorkerState


class ModelClient(ABC):
    """A hosted model as a frontend sees it.

    Args:
        version: of the model, as the Open Inference Protocol has it.

    Attributes:
        statistics: of this frontend's requests.
    """

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.statistics = Statistics()

    @property
    @abstractmethod
    def state(self) -> WorkerState:
        """What it can do now."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why it cannot."""

    @property
    @abstractmethod
    def info(self) -> HostedInfo | None:
        """What it is, once it is loaded."""

    @property
    def available(self) -> HostedInfo | None:
        """The same, if the model has not failed and is not being stopped."""
        return None if self.state in (WorkerState.FAILED, WorkerState.STOPPED) else self.info

    @property
    @abstractmethod
    def edition(self) -> str:
        """What has been loaded, and by which processes: another one whenever that changes."""

    @property
    def caches(self) -> bool:
        """Whether answers are kept."""
        return False

    @property
    def figures(self) -> Sequence[Family]:
        """Those of the model's own, of each of its processes."""
        return ()

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests that wait or are computed."""

    async def confirms(self) -> bool:
        """Whether the model's code says that it is ready, if it says anything of it."""
        return True

    @abstractmethod
    async def ready(self) -> HostedInfo:
        """Wait until the model takes requests.

        Raises:
            InferenceError: it never will; the message says why.
        """

    @abstractmethod
    def begin(self, inference: Inference | Outlined, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `infer`, without waiting: `outputs_of` has the outputs when the request has ended. Whoever does not want
        them any more calls `leave`.

        Args:
            on_end: called when it has ended, within the event that it ended by: it must be short, and raise nothing.
        """

    @abstractmethod
    def outline(self, inference: Inference) -> Outlined:
        """The same inference, checked. Its outline fits as long as the model is the same: `info` is.

        Raises:
            InferenceError: it does not fit the model, or there is none at the moment.
        """

    @abstractmethod
    def begin_call(self, call: BodyCall, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `begin`, of a body."""

    @abstractmethod
    def leave(self, pending: Pending) -> None:
        """Nobody reads what comes of a request any more; of one that has ended, that is so already."""

    @abstractmethod
    def close(self) -> None:
        """Ask nothing any more."""

    def _outlined(self, info: HostedInfo, inference: Inference) -> Outlined:
        """As `outline`, of a model that is this. One that does not fit counts as a failure."""
        inputs = inference.inputs
        try:
            items = info.signature.check(inputs, inference.outputs)
            for name, tensor in inputs.items():
                tensor.check(Place(name, info.name))
        except InferenceError:
            self.statistics.failure += 1
            raise
        tensors = [each.data for each in inputs.values()]
        outline = Outline(info, parts_of(inputs), sum(map(len, tensors)), items, tuple(inference.outputs))
        return Outlined(outline, tensors, inference.priority, inference.timeout, inference.details, inference.trace)

    async def infer(self, inference: Inference | Outlined) -> Outputs:
        """The outputs of a request, which is checked first. To cancel it takes it out of the queue.

        Raises:
            InferenceError: it does not fit the model, is not taken at the moment, or failed; or the model streams.
        """
        pending = self.begin(inference)
        try:
            await pending.wait()
        finally:
            self.leave(pending)
        return outputs_of(pending)

    async def each_result(self, inference: Inference | Outlined) -> AsyncGenerator[Result, None]:
        """All the results of a request as they come, one after the other; of a model that does not stream, one.

        Raises:
            InferenceError: as `infer`, when the first result is asked for or later.
        """
        pending = self.begin(inference)
        try:
            while result := await pending.next():
                yield result
        finally:
            self.leave(pending)

    async def stream(self, inference: Inference) -> AsyncGenerator[Outputs, None]:
        """`each_result` as tensors."""
        async with aclosing(self.each_result(inference)) as results:
            async for result in results:
                yield Outputs(*result)

    async def call(self, call: BodyCall) -> Body:
        """As `infer`, of a body."""
        pending = self.begin_call(call)
        try:
            await pending.wait()
        finally:
            self.leave(pending)
        output, data = pending.only()
        return Body(output.media_type, data)

    async def stream_call(self, call: BodyCall) -> AsyncIterator[Body]:
        """As `stream`, of a body."""
        pending = self.begin_call(call)
        try:
            while result := await pending.next():
                output, data = result
                yield Body(output.media_type, data)
        finally:
            self.leave(pending)


def outputs_of(pending: Pending) -> Outputs:
    """The outputs of a request that has ended. Raises InferenceError: as `ModelClient.infer`."""
    return Outputs(*pending.only())
