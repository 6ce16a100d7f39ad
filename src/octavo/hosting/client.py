"""A frontend's end of a hosted model: what it is asked for, and what comes back, whichever process computes it."""

from collections.abc import AsyncIterator

from octavo.hosting.inference import Body, BodyCall, Inference, Statistics
from octavo.hosting.info import HostedInfo
from octavo.hosting.tensors import Encoded
from octavo.worker.control import WorkerState


class HostedClient:
    """A hosted model as a frontend sees it.

    Attributes:
        state: what it can do now. failure: why it cannot. info: what it is, once it is loaded.
        statistics: of this frontend's requests. pending: requests that wait or are computed.
    """

    def __init__(self) -> None:
        self.state = WorkerState.LOADING
        self.failure: str | None = None
        self.info: HostedInfo | None = None
        self.statistics = Statistics()
        self.pending = 0

    async def infer(self, inference: Inference) -> dict[str, Encoded]:
        """The outputs of a request, which is checked first. To cancel it takes it out of the queue.

        Raises:
            InferenceError: it does not fit the model, is not taken at the moment, or failed; or the model streams.
        """
        raise NotImplementedError

    def stream(self, inference: Inference) -> AsyncIterator[dict[str, Encoded]]:
        """All the results of a request, one after the other; of a model that does not stream, one.

        Raises:
            InferenceError: as `infer`, when the first result is asked for or later.
        """
        raise NotImplementedError

    async def call(self, call: BodyCall) -> Body:
        """As `infer`, of a body."""
        raise NotImplementedError

    def stream_call(self, call: BodyCall) -> AsyncIterator[Body]:
        """As `stream`, of a body."""
        raise NotImplementedError
