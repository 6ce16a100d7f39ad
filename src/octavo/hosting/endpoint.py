"""A hosted model's end of the sockets to its frontends."""

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Frames, Reply, Request, frame, requests

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
_BACKLOG = 128
_MOST_BUFFERS = 512
"""In one call of the operating system; it takes 1024."""


class Peer:
    """A frontend. Any thread may send to it."""

    def __init__(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        self.connection = connection
        self.frames: Frames[Request] = Frames(requests)
        self._selector = selector
        self._unsent: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self._gone = False

    def send(self, reply: Reply, tensors: Sequence[Buffer] = ()) -> None:
        """Never waits: what the frontend does not read yet stays here, and goes when `flush` is called."""
        buffers = frame(reply, tensors)
        with self._sending:
            if self._gone:
                return
            self._unsent.extend(map(memoryview, buffers))
            if len(self._unsent) == len(buffers):
                self._write()
                if self._unsent:
                    self._selector.modify(self.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def flush(self) -> None:
        """The frontend reads again."""
        with self._sending:
            self._write()
            if not self._unsent and not self._gone:
                self._selector.modify(self.connection, selectors.EVENT_READ, self)

    def _write(self) -> None:
        try:
            while self._unsent:
                some = [self._unsent[at] for at in range(min(len(self._unsent), _MOST_BUFFERS))]
                sent = self.connection.sendmsg(some)
                while self._unsent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, which reading tells too
            self._unsent.clear()

    def close(self) -> None:
        """Send nothing any more."""
        with self._sending:
            self._gone = True
            self._unsent.clear()
            self._selector.unregister(self.connection)
            self.connection.close()


@dataclass(frozen=True, slots=True)
class Message:
    """A frontend asks for something."""

    peer: Peer
    request: Request
    data: memoryview


@dataclass(frozen=True, slots=True)
class Left:
    """A frontend is gone, and wants nothing any more."""

    peer: Peer


class Endpoint:
    """Listens at a path. One thread at a time receives."""

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waking, False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self.peers: set[Peer] = set()

    def receive(self, timeout: float | None) -> list[Message | Left]:
        """What frontends have sent: at once, or after waiting for so many seconds at most, or until `wake`; None waits
        for ever."""
        events: list[Message | Left] = []
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == self._woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 1 << 12)
            else:
                if mask & selectors.EVENT_WRITE:
                    key.data.flush()
                if mask & selectors.EVENT_READ:
                    events.extend(self._read(key.data))
        return events

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
        peer = Peer(connection, self._selector)
        self.peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: Peer) -> Iterator[Message | Left]:
        try:
            while data := peer.connection.recv(_READ_BYTES):
                for request, tensors in peer.frames.feed(data):
                    yield Message(peer, request, tensors)
                if len(data) < _READ_BYTES:
                    return
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("a frontend is gone: %s", error)
        except msgspec.MsgspecError:
            log.exception("a frontend says what nobody understands")
        self.peers.discard(peer)
        peer.close()
        yield Left(peer)
