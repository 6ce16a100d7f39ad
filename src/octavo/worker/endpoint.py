"""A worker's end of its channels: frontends come and go, and one that is silent for too long is forgotten."""

import contextlib
import math
import socket
import time
from dataclasses import dataclass
from typing import NamedTuple

import zmq

from octavo.worker.frames import Kind, pack, unpack, unpack_lease


class Message(NamedTuple):
    """A frontend sent something."""

    frontend: bytes
    data: memoryview


class Joined(NamedTuple):
    """A frontend is there."""

    frontend: bytes


class Left(NamedTuple):
    """A frontend was silent for longer than its lease, or begins anew: drop what it asked for."""

    frontend: bytes


Event = Message | Joined | Left


@dataclass(slots=True)
class _Lease:
    session: int
    seconds: float
    ends: float


class Endpoint:
    """Receives from any number of frontends and sends to them. Not thread-safe.

    Args:
        address: where to listen.
    """

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)  # a send never waits
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a frontend whose connection broke comes back as itself
        self._socket.bind(address)
        self._leases: dict[bytes, _Lease] = {}
        self._first_end = math.inf
        self._woken, self._waking = socket.socketpair()
        self._woken.setblocking(False)
        self._waking.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)

    @property
    def frontends(self) -> list[bytes]:
        """Those that hold a lease."""
        return list(self._leases)

    def receive(self, *, wait: bool) -> list[Event]:
        """Everything that has happened, in order.

        Args:
            wait: for something to happen, if nothing has. It may be nothing of interest.
        """
        events: list[Event] = []
        if wait:
            self._wait()
        while self._socket.poll(0):
            frontend, frame = self._socket.recv_multipart()
            self._note(frontend, frame, events)
        # Only now: what a frontend sent while this process was held up has renewed its lease.
        if time.monotonic() >= self._first_end:
            self._expire(events)
        return events

    def send(self, frontend: bytes, data: bytes) -> None:
        """Send to a frontend. Never waits; what one that is gone does not read is lost."""
        held = self._leases.get(frontend)
        if held is not None:
            self._socket.send_multipart([frontend, pack(Kind.DATA, held.session, data)])

    def wake(self) -> None:
        """Have `receive` return, which waits or is going to: something has happened elsewhere. Any thread may do so."""
        with contextlib.suppress(OSError):  # it is being woken already, or there is nobody any more
            self._waking.send(b"\0")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close(linger=0)
        self._woken.close()
        self._waking.close()

    def _wait(self) -> None:
        if self._woken.fileno() in dict(self._poller.poll(self._milliseconds_to_first_end())):
            self._woken.recv(1 << 12)

    def _note(self, frontend: bytes, frame: bytes, events: list[Event]) -> None:
        kind, session, data = unpack(frame)
        held = self._leases.get(frontend)
        now = time.monotonic()
        if kind == Kind.HELLO:
            if held is not None:
                events.append(Left(frontend))
            seconds = unpack_lease(data)
            self._leases[frontend] = _Lease(session, seconds, now + seconds)
            self._first_end = min(self._first_end, now + seconds)
            events.append(Joined(frontend))
        elif held is None or held.session != session:
            self._socket.send_multipart([frontend, pack(Kind.UNKNOWN, session)])
        else:
            held.ends = now + held.seconds
            if kind == Kind.DATA:
                events.append(Message(frontend, data))

    def _expire(self, events: list[Event]) -> None:
        now = time.monotonic()
        for frontend in [frontend for frontend, held in self._leases.items() if held.ends <= now]:
            del self._leases[frontend]
            events.append(Left(frontend))
        self._first_end = min((held.ends for held in self._leases.values()), default=math.inf)

    def _milliseconds_to_first_end(self) -> int | None:
        if self._first_end == math.inf:
            return None
        return max(math.ceil((self._first_end - time.monotonic()) * 1e3), 0)
