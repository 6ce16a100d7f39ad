"""All connections of a server: how many there may be, which one makes room, and whose time is over."""

import enum
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from octavo.server.entrance import Entrance
from octavo.server.errors import ApiError, unavailable
from octavo.server.inference.direct import DirectWay
from octavo.server.inference.http import error_below_routes
from octavo.server.middleware import PROBES

log = logging.getLogger("octavo.server")

PROBE_CONNECTIONS = 32
"""Beyond the limit, for whoever watches over the process: a crowded server is not a broken one."""

MIN_IDLE_SECONDS = 1.0
"""A connection that has been idle for less may have a request under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What clients may take.

    Attributes:
        max_connections: open at once.
        head_timeout: seconds for a request's head to arrive, from the connection or its first byte on.
        body_timeout: seconds in which a body must go on.
    """

    max_connections: int
    head_timeout: float
    body_timeout: float


class Admission(enum.Enum):
    """How a new connection is met."""

    WELCOME = enum.auto()
    CROWDED = enum.auto()
    """There are too many already: it may probe, every other request is refused."""
    REFUSED = enum.auto()
    """There are even too many of those."""


class Connection(Protocol):
    """What is asked of a connection here."""

    @property
    def transport(self) -> Any: ...

    def expire(self, now: float) -> None:
        """Give up if its time is over."""
        ...


class Connections(ServerState):
    """Uvicorn's state of a server, with limits.

    Attributes:
        idle: connections that wait for a request, since when; the longest idle first.
        entrance: for requests, before their first bytes are parsed.
        direct: answers what need not go through the application, if anything does.
    """

    def __init__(self, limits: ConnectionLimits, direct: DirectWay | None) -> None:
        super().__init__()
        self.limits = limits
        self.direct = direct
        self.entrance = Entrance()
        self.idle: dict[Connection, float] = {}
        self._crowded: set[Connection] = set()
        self._refused = 0

    def room(self) -> int:
        """How many connections more there may be."""
        return self.limits.max_connections - len(self.connections)

    def admit(self, connection: Connection, now: float) -> Admission:
        """Decide about a new connection. When there are too many, the one that has been idle for longest goes."""
        self.idle[connection] = now
        if len(self.connections) <= self.limits.max_connections:
            return Admission.WELCOME
        longest, since = next(iter(self.idle.items()))
        if now - since >= MIN_IDLE_SECONDS:
            del self.idle[longest]
            longest.transport.close()
            return Admission.WELCOME
        self._refused += 1
        if len(self._crowded) < PROBE_CONNECTIONS:
            self._crowded.add(connection)
            return Admission.CROWDED
        return Admission.REFUSED

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.idle.pop(connection, None)
        self._crowded.discard(connection)

    def expire(self, now: float) -> None:
        """Close what takes too long, and say how many were refused. To be called every second."""
        for connection in list(self.connections):
            connection.expire(now)  # type: ignore[union-attr]
        if self._refused:
            log.warning(
                "%d connections were refused: there are %d already (raise --max-connections, or `ulimit -n`)",
                self._refused,
                self.limits.max_connections,
            )
            self._refused = 0

    def full(self) -> ApiError:
        """The error for a connection too many."""
        return unavailable(f"The server has as many connections as it takes, {self.limits.max_connections}.")

    def answer_probes_alone(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """An application for a connection too many: /health and /ready are answered, everything else is refused."""

        async def crowded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] in PROBES:
                await app(scope, receive, send)
                return
            # The whole request is read: closing on unread data would take the answer from the client.
            while (await receive()).get("more_body", False):
                pass
            error = self.full()
            body = error_below_routes(error, scope["path"])
            answer = Response(body, error.status_code, error.headers, "application/json")
            await answer(scope, receive, send)

        return crowded
