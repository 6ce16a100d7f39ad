"""A port for metrics alone, as Triton has one: whoever may see them need not be let in to the models."""

import asyncio
import socket

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.acceptor import Acceptor
from octavo.server.connections import Connections
from octavo.server.operations import METRICS
from octavo.server.protocol import HttpProtocol

KEEP_ALIVE_SECONDS = 75
"""That a connection may be idle."""


class MetricsPort:
    """Answers `/metrics` on a port, until it is closed.

    Args:
        app: of the server whose metrics they are. connections: how many there may be, and for how long.
        listener: closed at the end.
    """

    def __init__(self, app: ASGIApp, connections: Connections, listener: socket.socket) -> None:
        self._connections = connections
        self._listener = listener
        self._config = uvicorn.Config(
            _metrics_alone(app),
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._acceptor = Acceptor(listener, self._new_protocol, connections.room)
        self._expiring = asyncio.create_task(self._expire())

    async def close(self) -> None:
        """Close the port, and what is open there."""
        self._expiring.cancel()
        self._acceptor.close()
        await self._acceptor.wait_closed()
        for connection in list(self._connections.connections):
            connection.transport.close()
        self._listener.close()

    def _new_protocol(self) -> asyncio.Protocol:
        return HttpProtocol(self._config, self._connections, {})

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self._connections.expire(loop.time())


def _metrics_alone(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != METRICS:
            await Response('{"error":"Not Found"}', 404, media_type="application/json")(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer
