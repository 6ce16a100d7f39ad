"""A hosted model's end of the sockets to its frontends."""

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import msgspec

from octavo.hosting.errors import Code
from octavo.hosting.frames import Reader, Writer, requests
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Failed, Output, Reply, Request, Returned
from octavo.worker.forks import keep_from_forks

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_BACKLOG = 128
_MOST_BUFFERS = 512
"""In one call of the operating system; it takes 1024."""

_NOTHING = memoryview(b"")


class Peer:
    """A frontend. Any thread may send to it."""

    def __init__(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        self.connection = connection
        self._reader: Reader[Request] = Reader(requests)
        self._writer = Writer()
        self._selector = selector
        self._unsent: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self._gone = False

    def send(self, reply: Reply, tensors: Sequence[Buffer] = ()) -> None:
        """As `send_all`, of one."""
        self.send_all([(reply, tensors)])

    def send_all(self, replies: Sequence[tuple[Reply, Sequence[Buffer]]]) -> None:
        """Send replies in one call of the operating system, each with the bytes of its tensors.

        Never waits: what the frontend does not read yet stays here, and goes when `flush` is called.
        """
        with self._sending:
            if not self._gone:
                buffers: list[Buffer] = []
                for reply, tensors in replies:
                    buffers += self._framed(reply, tensors)
                self._send(buffers)

    def _framed(self, reply: Reply, tensors: Sequence[Buffer]) -> Sequence[Buffer]:
        """A reply's frame; one that cannot be written is an error of the request's."""
        try:
            return self._writer.frame(reply, tensors)
        except ValueError as error:
            assert isinstance(reply, Output | Failed)
            why = f"the result cannot be sent: {error}"
            return self._writer.frame(Failed(reply.number, Code.INTERNAL.value, why))

    def read(self, data: bytes, events: "list[Event]") -> None:
        """Append what it has sent. Raises msgspec.MsgspecError, OSError: it cannot be understood."""
        for request, tensors in self._reader.feed(data):
            if isinstance(request, Returned):
                with self._sending:
                    if told := self._writer.take_back(request):
                        self._send([told])
                self.give_back()
            else:
                events.append((self, request, tensors))

    def give_back(self) -> None:
        """Tell it which of its blocks nobody uses any more."""
        returned = self._reader.returned()
        if returned is not None:
            self.send(returned)

    def _send(self, buffers: Sequence[Buffer]) -> None:
        waits = bool(self._unsent)
        self._unsent.extend(map(memoryview, buffers))
        if not waits:
            self._write()
            if self._unsent:
                # What the model has given is its own again when this returns.
                self._unsent = deque(memoryview(bytes(each)) for each in self._unsent)
                self._selector.modify(self.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def flush(self) -> None:
        """The frontend reads again."""
        with self._sending:
            self._write()
            if not self._unsent and not self._gone:
                self._selector.modify(self.connection, selectors.EVENT_READ, self)

    def _write(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self.connection.sendmsg(islice(unsent, _MOST_BUFFERS))
                while unsent and sent >= len(unsent[0]):
                    sent -= len(unsent.popleft())
                if sent:
                    unsent[0] = unsent[0][sent:]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, which reading tells too
            unsent.clear()

    @property
    def at_rest(self) -> bool:
        """Whether it has read all that was sent to it, and needs none of the memory that this was in."""
        with self._sending:
            return not self._unsent and not self._writer.lends

    def close(self) -> None:
        """Send nothing any more."""
        with self._sending:
            self._gone = True
            self._unsent.clear()
            self._writer.close()
            self._reader.close()
            self._selector.unregister(self.connection)
            self.connection.close()


Event = tuple[Peer, Request | None, memoryview]
"""A frontend asks for something, with so many bytes; or it is gone, and wants nothing any more."""


class Source(Protocol):
    """What else a process hears."""

    def fileno(self) -> int:
        """A descriptor that can be read when there is something to `hear`."""
        ...

    def hear(self) -> bool:
        """Take what is there. Returns whether more may come."""
        ...


class Endpoint:
    """Listens at a path. One thread at a time receives."""

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        keep_from_forks(self._listener)
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waking, False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self.peers: set[Peer] = set()
        self._sources: dict[int, Source] = {}

    def receive(self, timeout: float | None) -> list[Event]:
        """What frontends have sent: at once, or after waiting for so many seconds at most, or until `wake`; None waits
        for ever."""
        events: list[Event] = []
        for key, mask in self._selector.select(timeout):
            peer = key.data
            if peer is not None:
                if mask & selectors.EVENT_WRITE:
                    peer.flush()
                if mask & selectors.EVENT_READ:
                    self._read(peer, events)
            elif key.fd == self._woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 1 << 12)
            elif (source := self._sources.get(key.fd)) is None:
                self._accept()
            elif not source.hear():
                self._selector.unregister(key.fd)
        return events

    def watch(self, source: Source) -> None:
        """Have whoever receives hear something else, too."""
        self._sources[source.fileno()] = source
        self._selector.register(source.fileno(), selectors.EVENT_READ)

    def fileno(self) -> int:
        """A descriptor that can be read when there is something to receive."""
        return self._selector.fileno()

    def wake(self) -> None:
        """Have `receive` return, which waits or is going to. Any thread may do so."""
        with contextlib.suppress(BlockingIOError):  # it is being woken already
            os.write(self._waking, b"\0")

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a frontend: %s", error)
            return
        connection.setblocking(False)
        keep_from_forks(connection)  # at whose end the frontend sees that of this process
        peer = Peer(connection, self._selector)
        self.peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: Peer, events: list[Event]) -> None:
        try:
            while data := peer.connection.recv(_READ_BYTES):
                peer.read(data, events)
                if len(data) < _READ_BYTES:
                    return
        except BlockingIOError:
            return
        except OSError as error:  # its memory may be gone with it; or there are no descriptors left
            log.warning("a frontend is gone: %s", error)
        except msgspec.MsgspecError:
            log.exception("a frontend says what nobody understands")
        self.peers.discard(peer)
        peer.close()
        events.append((peer, None, _NOTHING))
