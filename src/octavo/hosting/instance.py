"""A frontend's end of one process of a hosted model."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from octavo.hosting.connection import Connection
from octavo.hosting.pending import Pending
from octavo.hosting.running import RunningElsewhere, path_beside
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Cancel, Family, Reply, Request
from octavo.worker.control import WorkerState, WorkerStatus

log = logging.getLogger(__name__)

REASON_SECONDS = 2.0
"""For the supervisor to say what a process died of."""

RETRY_SECONDS = 0.2

_SCHEME = "ipc://"


class Client(Protocol):
    """Whom an instance tells what happens."""

    def on_open(self) -> None:
        """An instance can be asked."""
        ...

    def on_reply(self, instance: "Instance", pending: Pending | None, reply: Reply, data: memoryview) -> None:
        """An instance said something of a request; None if nobody waits for that any more, or of none."""
        ...

    def on_lost(self, instance: "Instance") -> None:
        """An instance has ended, or its connection has."""
        ...

    def on_computed(self, instance: "Instance", lost: list[Pending], why: str) -> None:
        """An instance died while it computed these."""
        ...

    def on_waiting(self, lost: list[Pending]) -> None:
        """An instance is gone where these waited."""
        ...


class Instance:
    """One process, or the one that took its place.

    Attributes:
        name: of the worker. state: as its supervisor sees it. failure: why it is not ready.
        incarnation: which process of that name it is.
        outstanding: what it was asked for, by number. limit: seconds that a batch may take; 0 for any number.
        deaths: processes that have ended.
        figures: of the model's own.
    """

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.state = WorkerState.LOADING
        self.failure: str | None = None
        self.incarnation = 0
        self.outstanding: dict[int, Pending] = {}
        self.limit = 0.0
        self.deaths = 0
        self.figures: tuple[Family, ...] = ()
        self._client = client
        self._socket = ""
        self._connection: Connection | None = None
        self._running: RunningElsewhere | None = None
        self._opening: asyncio.Task[None] | None = None
        self._computed: list[Pending] = []
        self._overdue = False
        self._reason: asyncio.TimerHandle | None = None

    def can_take(self, pending: Pending) -> bool:
        """Whether it can be asked for a request."""
        return self._connection is not None and self.name not in pending.within

    def ask(self, pending: Pending) -> None:
        """Send a request. Never waits."""
        assert self._connection is not None
        self.outstanding[pending.number] = pending
        self._connection.send(pending.message, pending.tensors)

    def tell(self, message: Request, tensors: Sequence[Buffer] = ()) -> None:
        """Send something else, unless the process has ended."""
        if self._connection is not None:
            self._connection.send(message, tensors)

    def cancel(self, pending: Pending) -> None:
        """Nobody waits for a request any more."""
        if self.outstanding.pop(pending.number, None) is not None and self._connection is not None:
            self._connection.send(Cancel(pending.number))

    def computes(self, pending: Pending) -> bool:
        """Whether a request that it was asked for is being computed, and waits no more."""
        return self._running is not None and pending.number in self._running.read()

    def update(self, status: WorkerStatus) -> None:
        """Learn where the process stands."""
        self.state, self.failure, self.incarnation = status.state, status.failure, status.incarnation
        if status.state is WorkerState.READY and status.address is None:  # it has just ended, and it is told next how
            self._lose()
        elif status.state is WorkerState.READY:
            assert status.address is not None
            socket = status.address.removeprefix(_SCHEME)
            if socket != self._socket:
                self._lose()
                self._socket = socket
                self._opening = asyncio.create_task(self._open(), name=f"connect to {self.name}")
        else:
            self._lose()
            self._explain(status.failure)

    def close(self) -> None:
        """Ask nothing any more."""
        self._lose()
        self._explain(None)

    async def _open(self) -> None:
        while True:
            try:
                self._connection, self._running = await self._connect()
            except OSError as error:  # of descriptors, say, which come back; or it has just died, which is told soon
                log.warning("cannot connect to %s: %s", self.name, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._client.on_open()
                return

    async def _connect(self) -> tuple[Connection, RunningElsewhere]:
        """Raises OSError."""
        running = RunningElsewhere(path_beside(self._socket))  # while it is there: of a process that dies it is removed
        try:
            connection = await Connection.open(self._socket, self)
            connection.require_open()
        except BaseException:
            running.close()
            raise
        return connection, running

    def _lose(self) -> None:
        """The process that was asked is not there any more."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._connection is not None:
            self._connection.close()
            self._part()

    def _part(self) -> None:
        """Tell what it computed when it ended from what waited."""
        self.deaths += 1
        assert self._running is not None
        running = self._running.read()
        self._running.close()
        self._connection, self._running, self.figures = None, None, ()
        self._client.on_lost(self)
        outstanding, self.outstanding = list(self.outstanding.values()), {}
        self._computed += [each for each in outstanding if each.number in running]
        self._overdue = bool(self.limit and running) and time.monotonic() - min(running.values()) >= self.limit
        if self._computed and self._reason is None:
            self._reason = asyncio.get_running_loop().call_later(REASON_SECONDS, self._explain, None)
        if waiting := [each for each in outstanding if each.number not in running]:
            self._client.on_waiting(waiting)

    def _explain(self, failure: str | None) -> None:
        if self._reason is not None:
            self._reason.cancel()
            self._reason = None
        computed, self._computed = self._computed, []
        if computed:
            late = f"it did not return within {self.limit:g} s, and its process was ended"
            self._client.on_computed(self, computed, late if self._overdue else failure or "its process ended")

    # --- what the connection says -------------------------------------------------------------------------------------

    def on_reply(self, reply: Reply, data: memoryview) -> None:
        """The process said something."""
        number = getattr(reply, "number", None)
        self._client.on_reply(self, None if number is None else self.outstanding.get(number), reply, data)

    def on_lost(self) -> None:
        """The process has ended, or has ended the connection."""
        if self._connection is None:  # before anything was asked: `_open` tries again
            return
        self._part()
        if self.state is WorkerState.READY:  # until the supervisor says what has become of it
            self._opening = asyncio.create_task(self._open(), name=f"connect to {self.name}")
