"""Accepting connections: many at a time, and probes before all others.

uvloop accepts one in a turn of its loop. In a burst every new connection, even a probe, would wait for as many turns as
there are others before it.
"""

import asyncio
import logging
import selectors
import socket
from collections import OrderedDict
from collections.abc import Callable

from octavo.server.middleware import PROBE_HEADS

log = logging.getLogger("octavo.server")

CONNECTIONS_PER_TURN = 64
"""Accepted. Few enough that several processes on one socket share a burst."""

WELCOMED_PER_TURN = 4
"""Get a protocol, which takes ten times as long."""

MAX_WAITING = 4096
"""More are left to the system's backlog."""

PAUSE_SECONDS = 1.0
"""After the system has refused to accept one (no descriptors, no memory)."""


class Acceptor:
    """Makes a protocol for each connection that a socket has. Takes the place of an asyncio server for uvicorn.

    Connections that come all at once wait in a line, and no longer than it takes to serve those before them. One
    that begins with a probe does not wait.

    Args:
        room: how many connections more the server can have; so many may wait.
    """

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[], asyncio.BaseProtocol],
        room: Callable[[], int] = lambda: MAX_WAITING,
    ) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[socket.socket, bool] = OrderedDict()
        """In the order of arrival; whether it is known how they begin."""
        self._unheard = selectors.DefaultSelector()
        self._welcomed = 0
        """In this turn of the loop."""
        self._connecting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._accept_from_now_on()

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        for connection in self._waiting:
            connection.close()
        self._waiting.clear()
        self._unheard.close()

    async def wait_closed(self) -> None:
        """Wait for those that have been accepted to be connected."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept_from_now_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        room = min(self._room(), MAX_WAITING) - len(self._waiting)
        for _ in range(min(max(room, WELCOMED_PER_TURN - len(self._waiting)), CONNECTIONS_PER_TURN)):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # the client has left already
                continue
            except OSError as error:
                log.error("cannot accept connections: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._accept_from_now_on)
                return
            connection.setblocking(False)
            if self._welcomed < WELCOMED_PER_TURN and not self._waiting:
                self._welcome(connection)
            else:
                self._waiting[connection] = False
                self._unheard.register(connection, selectors.EVENT_READ)

    def _welcome(self, connection: socket.socket) -> None:
        if self._welcomed == 0:
            self._loop.call_soon(self._next_turn)
        self._welcomed += 1
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._new_protocol, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _next_turn(self) -> None:
        self._welcomed = 0
        if self._waiting:
            self._welcome_probes()
        while self._waiting and self._welcomed < WELCOMED_PER_TURN:
            connection, heard = self._waiting.popitem(last=False)
            if not heard:
                self._unheard.unregister(connection)
            self._welcome(connection)

    def _welcome_probes(self) -> None:
        for key, _ in self._unheard.select(0):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            self._unheard.unregister(connection)
            if _is_probe(connection):
                del self._waiting[connection]
                self._welcome(connection)
            else:
                self._waiting[connection] = True


def _is_probe(connection: socket.socket) -> bool:
    """Whether what it has sent begins with a probe."""
    try:
        return connection.recv(max(map(len, PROBE_HEADS)), socket.MSG_PEEK).startswith(PROBE_HEADS)
    except OSError:  # whoever reads it next will see
        return False
