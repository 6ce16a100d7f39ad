"""Accepting connections several at a time.

uvloop accepts one in a turn of its loop. In a burst every new connection, even a probe, would wait for as many turns as
there are others before it.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("octavo.server")

CONNECTIONS_PER_TURN = 32
"""Few enough that several processes on one socket share a burst."""

PAUSE_SECONDS = 1.0
"""After the system has refused to accept one (no descriptors, no memory)."""


class Acceptor:
    """Makes a protocol for each connection that a socket has. Takes the place of an asyncio server for uvicorn."""

    def __init__(self, listener: socket.socket, new_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Wait for those that have been accepted to be connected."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> None:
        for _ in range(CONNECTIONS_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # the client has left already
                continue
            except OSError as error:
                log.error("cannot accept connections: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._new_protocol, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)
