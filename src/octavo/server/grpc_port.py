"""The port for gRPC, which is opened when there is something to serve: until then nothing is loaded that it needs."""

import logging
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.deployments import AnyDeployment, HostedDeployment
from octavo.server.context import Server
from octavo.server.listener import BACKLOG, grpc_address_of

if TYPE_CHECKING:
    from octavo.server.grpc.server import GrpcServer

log = logging.getLogger("octavo.server")


class GrpcPort:
    """A port that a server may open.

    Args:
        listener: from `bind_grpc`; closed at the end. max_connections: open at once.
    """

    def __init__(self, server: Server, listener: socket.socket, max_connections: int) -> None:
        self._server = server
        self._listener = listener
        self._max_connections = max_connections
        self._open: GrpcServer | None = None
        self._failed = False

    def open_when_needed(self) -> None:
        """Open it when the first hosted model is offered, or at once if it listens already: clients may load one."""
        self._server.deployments.subscribe(self._look)

    def drain(self) -> None:
        """Refuse new calls, let those that there are end."""
        if self._open is not None:
            self._open.drain()

    async def close(self) -> None:
        """Close the port, and what is still open."""
        if self._open is not None:
            await self._open.close()
        self._listener.close()

    def _look(self, deployments: Iterable[AnyDeployment]) -> None:
        listens = self._listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        hosted = listens or any(isinstance(each, HostedDeployment) for each in deployments)
        if not hosted or self._failed or self._open is not None:
            return
        from octavo.server.grpc.server import GrpcServer

        try:
            self._listener.listen(BACKLOG)  # once more, if it does already
        except OSError as error:
            self._failed = True
            where = grpc_address_of(self._listener)
            log.error("cannot listen on %s for gRPC: %s; choose another with --grpc-port", where, error.strerror)
            return
        self._open = GrpcServer(self._server, self._listener, self._max_connections)
