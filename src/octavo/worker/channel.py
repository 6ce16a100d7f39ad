"""A frontend's end of the channel to one incarnation of a worker."""

import asyncio
import logging
import time
import uuid
from typing import Protocol

import zmq
import zmq.asyncio

from octavo.worker.frames import Kind, pack, pack_lease, unpack

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
"""A worker that has not heard of a frontend for so long drops what it does for it."""

BEATS_PER_LEASE = 5

RETRY_SECONDS = 0.5


class Subscriber(Protocol):
    """Whom a channel tells what happens."""

    def on_open(self) -> None:
        """The worker can be sent messages; it holds nothing of this frontend."""
        ...

    def on_expired(self) -> None:
        """The lease ran out, and the worker dropped everything. The channel opens again at once."""
        ...

    def on_message(self, data: memoryview) -> None:
        """The worker sent something."""
        ...

    def on_defect(self) -> None:
        """A message could not be handled, and the session is not to be trusted. The channel opens again at once."""
        ...


class Channel:
    """Sends and receives payloads that it does not look into.

    A new incarnation of a worker gets a new channel, at an address of its own.

    Args:
        address: where the worker listens.
        lease_seconds: silence after which the worker may drop this frontend.
    """

    def __init__(self, address: str, subscriber: Subscriber, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.last_heard = time.monotonic()
        self._address = address
        self._subscriber = subscriber
        self._lease = lease_seconds
        self._session = 0
        self._identity = uuid.uuid4().bytes
        self._socket: zmq.asyncio.Socket | None = None
        self._task = asyncio.create_task(self._run(), name=f"channel to {address}")

    @property
    def is_open(self) -> bool:
        """Whether `send` reaches the worker."""
        return self._socket is not None

    def send(self, data: bytes) -> None:
        """Send a payload. Never waits."""
        self._send(Kind.DATA, data)

    def close(self) -> None:
        """End the channel at once. Nothing more is told to the subscriber."""
        self._task.cancel()
        self._close_socket()

    async def _run(self) -> None:
        while True:
            try:
                self._socket = self._connect()
                self._begin()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._beat())
                    tasks.create_task(self._receive(self._socket))
            except* Exception as errors:  # of descriptors, say, which come back
                log.error("the channel to a worker broke; opening it again", exc_info=errors)
                self._subscriber.on_defect()
            finally:
                self._close_socket()
            await asyncio.sleep(RETRY_SECONDS)

    def _connect(self) -> zmq.asyncio.Socket:
        socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        socket.set_hwm(0)  # a send never waits
        socket.setsockopt(zmq.ROUTING_ID, self._identity)
        socket.connect(self._address)
        return socket

    def _begin(self) -> None:
        self._session += 1
        self._send(Kind.HELLO, pack_lease(self._lease))
        self._subscriber.on_open()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease / BEATS_PER_LEASE)
            self._send(Kind.BEAT)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while socket is self._socket:  # `close` may come before the first turn
            kind, session, data = unpack(await socket.recv())
            self.last_heard = time.monotonic()
            if session != self._session:
                continue
            if kind == Kind.DATA:
                self._handle(data)
            elif kind == Kind.UNKNOWN:
                log.warning("the lease ran out: this process was held up for more than %g s", self._lease)
                self._subscriber.on_expired()
                self._begin()

    def _handle(self, data: memoryview) -> None:
        try:
            self._subscriber.on_message(data)
        except Exception:
            log.exception("cannot handle a worker's message")
            self._subscriber.on_defect()
            self._begin()

    def _send(self, kind: Kind, data: bytes = b"") -> None:
        if self._socket is not None:
            self._socket.send(pack(kind, self._session, data))

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
