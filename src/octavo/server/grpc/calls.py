"""All calls of a server: which methods there are, and who may call them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from secrets import token_hex

from octavo.server.body import INLINE_BYTES
from octavo.server.context import Server
from octavo.server.forwarding import forwarded, header_pattern
from octavo.server.grpc.call import Call, Method
from octavo.server.grpc.framing import ENCODINGS
from octavo.server.grpc.head import CallHead, read_head
from octavo.server.grpc.status import RpcError, Status
from octavo.server.http2.connection import Connection
from octavo.server.keys import Keyring
from octavo.server.restrictions import Restrictions

RESTRICTED_PREFIX = "triton-grpc-protocol-"
"""Of the names of headers that restrictions want."""

ACCEPTED = (b"grpc-accept-encoding", ",".join(ENCODINGS).encode())


class Calls:
    """What requests on the port for gRPC are for. See `Application`.

    Args:
        methods: by path.

    Attributes:
        name: how the names of calls begin that clients have not named.
        max_bytes: of a message. inline_bytes: of one that is neither too long nor accounted for.
    """

    def __init__(self, server: Server, methods: Mapping[str, Method]) -> None:
        self.name = token_hex(8)
        self.in_flight = server.in_flight
        self.bodies = server.tensor_bodies
        self.max_bytes = server.settings.max_tensor_body_bytes
        self.inline_bytes = min(self.max_bytes, INLINE_BYTES)
        self._methods = methods
        self._keyring = Keyring(server.settings.client_keys)
        settings = server.settings
        self._forwarding = header_pattern(settings.grpc_header_forward_pattern, "grpc_header_forward_pattern")
        restricted = settings.grpc_restricted_protocol
        self._restrictions = Restrictions(restricted, "grpc_restricted_protocol", RESTRICTED_PREFIX)
        self._streams: set[Call] = set()

    def read_head(self, fields: Sequence[tuple[bytes, bytes]]) -> CallHead:
        """What a request with such fields calls, and whether it may: that is found out once."""
        head = read_head(fields)
        head.key = self._keyring.find(head.authorization, head.api_key)
        if self._forwarding is not None:
            head.parameters = forwarded(self._forwarding, fields)
        if (method := self._methods.get(head.path)) is not None:
            head.restricted = self._restrictions.missing(method.api, dict(fields))
        with suppress(RpcError):
            head.method = self._method(head)
        return head

    def begin(self, connection: Connection, number: int, head: CallHead) -> Call:
        """A call has begun."""
        return Call(self, connection, number, head)

    def admit(self, head: CallHead) -> Method:
        """The method that is called. Raises RpcError: there is none, or it may not be called."""
        method = head.method or self._method(head)
        if self.in_flight.draining and method.works:
            raise self.shutting_down()
        return method

    def _method(self, head: CallHead) -> Method:
        method = self._methods.get(head.path)
        if head.key is None and self._keyring and not (method is not None and method.open):
            raise RpcError(
                Status.UNAUTHENTICATED,
                "Incorrect API key provided. Send a valid key as 'authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        if method is None:
            raise RpcError(Status.UNIMPLEMENTED, f"There is no method {head.path}.")
        if head.restricted is not None:
            raise RpcError(Status.UNAVAILABLE, f"This protocol is restricted, expecting header '{head.restricted}'")
        if head.wrong:
            raise RpcError(Status.INVALID_ARGUMENT, head.wrong)
        if head.encoding not in ENCODINGS:
            message = f"grpc-encoding is {head.encoding!r}, but must be one of {', '.join(ENCODINGS)}"
            raise RpcError(Status.UNIMPLEMENTED, message, (ACCEPTED,))
        return method

    def shutting_down(self) -> RpcError:
        """Nothing more is done, in Triton's words."""
        message = "GRPC server is shutting down and has stopped accepting new requests."
        return RpcError(Status.UNAVAILABLE, message, ((b"retry-after", b"1"),))

    def follow(self, call: Call) -> None:
        """A stream has begun, which lasts as long as the client likes, or until `drain`."""
        self._streams.add(call)

    def leave(self, call: Call) -> None:
        """A call has ended."""
        self._streams.discard(call)
        self.in_flight.leave(call)

    def drain(self) -> None:
        """Streams end when what they have taken is answered."""
        for call in list(self._streams):
            call.take_no_more()
