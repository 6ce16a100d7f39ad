"""The port for gRPC: its connections, from the first to an orderly end."""

import asyncio
import logging
import math
import socket

from octavo.server.acceptor import Acceptor
from octavo.server.context import Server
from octavo.server.grpc import health_service, inference_service, reflection_service
from octavo.server.grpc.calls import Calls
from octavo.server.grpc.health_service import HealthService
from octavo.server.grpc.inference_service import InferenceService
from octavo.server.grpc.reflection_service import ReflectionService
from octavo.server.http2.connection import READ_BYTES, Connection, Limits
from octavo.server.operations import server_problem

log = logging.getLogger("octavo.server")

MIN_IDLE_SECONDS = 1.0
"""A connection that has been idle for less may have a call under way."""

SERVICES = (inference_service.NAME, health_service.NAME, reflection_service.NAME)


class GrpcServer:
    """The protocols of `SERVICES` on a socket, from now on.

    Args:
        listener: listens already.
        max_connections: beyond them the one that has been idle for longest goes, or the new one if there is none.
    """

    def __init__(self, server: Server, listener: socket.socket, max_connections: int) -> None:
        self._server = server
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        settings = server.settings
        self._limits = Limits(
            preface_timeout=settings.request_head_timeout,
            body_timeout=settings.request_body_timeout,
            max_age=_seconds(settings.grpc_max_connection_age),
            max_age_grace=_seconds(settings.grpc_max_connection_age_grace),
        )
        methods = InferenceService(server, self._is_ready).methods()
        methods |= HealthService(server.deployments, self._is_ready, SERVICES).methods()
        methods |= ReflectionService(SERVICES).methods()
        self._calls = Calls(server, methods)
        self._read = memoryview(bytearray(READ_BYTES))
        self._acceptor = Acceptor(listener, self._connect)
        self._expiring = asyncio.create_task(self._expire())

    def drain(self) -> None:
        """Refuse new calls, let those that there are end."""
        self._calls.drain()
        for connection in list(self._connections):
            connection.leave()

    async def close(self) -> None:
        """Close what is still open."""
        self._expiring.cancel()
        self._acceptor.close()
        await self._acceptor.wait_closed()
        for connection in list(self._connections):
            connection.abort()

    def _is_ready(self) -> bool:
        return server_problem(self._server) is None

    def _connect(self) -> Connection:
        return Connection(self._calls, self._limits, self._open, self._connections.discard, self._read)

    def _open(self, connection: Connection) -> None:
        if len(self._connections) >= self._max_connections:
            idle = [each for each in self._connections if each.idle_since is not None]
            longest = min(idle, key=lambda each: each.idle_since or 0.0, default=None)
            if longest is None or connection.now - (longest.idle_since or 0.0) < MIN_IDLE_SECONDS:
                log.warning("a connection for gRPC was refused: there are %d already", self._max_connections)
                connection.leave()
                return
            longest.leave()
        self._connections.add(connection)

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for connection in list(self._connections):
                connection.expire(loop.time())


def _seconds(milliseconds: int | None) -> float:
    return math.inf if milliseconds is None else milliseconds * 1e-3
