"""One exchange of a connection: a request that comes in, an answer that goes out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from octavo.server.http2.connection import Connection

Buffer = bytes | bytearray | memoryview


class Stream:
    """What an application makes of a request; it is told what comes, as it comes.

    Attributes:
        connection: that it belongs to. id: its number there. head: what the application made of the request's fields.
        window: bytes that may be sent. credit: bytes that the client may send; `spent` of them are not given back yet.
        held: nothing is given back as long as it is set: the client has to wait.
        ended: the request is whole. closed: nothing more is sent or received.
        touched: when something of the request came last, in seconds of the loop.
    """

    spent = 0
    held = ended = closed = False

    def __init__(self, connection: "Connection", number: int, head: Any) -> None:
        self.connection = connection
        self.id = number
        self.head = head
        self.window = connection.peer.initial_window
        self.credit = connection.limits.stream_window
        self.touched = connection.now

    @property
    def waits(self) -> bool:
        """Whether more of the request has to come soon."""
        return not self.ended

    def on_begin(self) -> None:
        """The connection knows of it: it may be answered."""
        raise NotImplementedError

    def on_data(self, data: Buffer) -> None:
        """Bytes of the request's body have come, which are never changed."""
        raise NotImplementedError

    def room(self) -> memoryview | None:
        """Where the next bytes of the body go without being copied, if there is such a place."""
        return None

    def on_data_there(self, size: int) -> None:
        """So many bytes have gone there."""
        raise NotImplementedError

    def on_end(self) -> None:
        """All of it has come."""
        raise NotImplementedError

    def on_reset(self) -> None:
        """The client, or the connection, has gone: nothing can be sent any more."""
        raise NotImplementedError

    def on_timeout(self) -> None:
        """The request does not go on."""
        raise NotImplementedError


class Application(Protocol):
    """What requests are for."""

    def read_head(self, fields: Sequence[tuple[bytes, bytes]]) -> Any:
        """What a request with such fields wants. It may be used for any number of requests that have the same."""

    def begin(self, connection: "Connection", number: int, head: Any) -> Stream:
        """A request has begun."""
