"""What an API is: how its bodies are read, and how its answers and errors are written. Nothing else is its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.request import GenerationRequest
from octavo.server.errors import ApiError
from octavo.server.schema.base import Body

B = TypeVar("B", bound=Body)


class ErrorWriter(ABC):
    """Writes what is not part of an answer."""

    ping: ClassVar[bytes] = b": ping\n\n"
    """An event that says nothing, for streams that are silent."""

    @abstractmethod
    def error(self, error: ApiError, request_id: str) -> bytes:
        """The end of a stream that went wrong: the status has been sent, and said that all was well."""


class Writer(ErrorWriter):
    """Writes one answer, streamed or whole."""

    @abstractmethod
    def events(self, delta: Delta) -> bytes:
        """What a choice's delta is in a stream; empty if the client would learn nothing."""

    @abstractmethod
    def end(self) -> bytes:
        """The end of a stream whose choices have all ended."""

    @abstractmethod
    def whole(self, choices: Sequence[Delta]) -> Iterator[bytes]:
        """The body of an answer that is not streamed. Long ones are written in a thread, which keeps everything else
        from running while it encodes JSON: they come in pieces that take a millisecond or two.

        Args:
            choices: for each all of its deltas joined.
        """


class Dialect(ABC, Generic[B]):
    """One API that generates text.

    Attributes:
        path: where requests are posted to. tag: the heading it is documented under.
        body: what requests are validated against.
        responses: what its documentation says about the answers.
    """

    path: ClassVar[str]
    tag: ClassVar[str]
    responses: ClassVar[dict[int | str, dict[str, Any]]] = {}
    body: type[B]

    @abstractmethod
    def parse(self, body: B) -> GenerationRequest:
        """The request in no API's words. Raises ApiError for fields that do not go together."""

    @abstractmethod
    def writer(self, body: B, generation: Generation) -> Writer:
        """What writes the answer to one request."""

    def status(self, error: ApiError) -> int:
        """The status of an error response."""
        return error.status_code

    @abstractmethod
    def error(self, error: ApiError, request_id: str) -> bytes:
        """The body of an error response."""
