"""A frontend's connection to one process of a hosted model."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, cast

import msgspec

from octavo.hosting.blocks import SPARE_SECONDS
from octavo.hosting.frames import Reader, Writer, replies
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Reply, Request, Returned

log = logging.getLogger(__name__)

NOTHING_RETURNED = Returned(())


class Owner(Protocol):
    """Whom a connection tells what happens."""

    def on_reply(self, reply: Reply, data: memoryview) -> None:
        """The process said something."""
        ...

    def on_lost(self) -> None:
        """The connection has ended, and with it what the process was asked for on it."""
        ...


class Connection(asyncio.Protocol):
    """Frames over a Unix socket."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._reader: Reader[Reply] = Reader(replies)
        self._writer = Writer()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[Buffer] = []
        self._in_turn = 0  # frames of this turn of the loop
        self._half = 0  # of those of the last one
        self._tidying: asyncio.TimerHandle | None = None

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Where this is used. To ask for it costs a call of the operating system each time."""
        return asyncio.get_running_loop()

    @classmethod
    async def open(cls, path: str, owner: Owner) -> "Connection":
        """Connect. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_unix_connection(lambda: cls(owner), path)
        return connection

    def require_open(self) -> None:
        """Raises ConnectionResetError: it has ended already."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection has ended")

    def send(self, message: Request, tensors: Sequence[Buffer] = ()) -> None:
        """Never waits. What the process does not read yet stays here.

        What is sent in one turn of the loop goes in two calls of the operating system: in one each, the other process
        would take this one's place on its core again and again; in one alone, it would have nothing to do before all
        is there, and this one nothing before all is answered.
        """
        self._put(self._writer.frame(message, tensors))
        self._tidy_later()

    def _tidy_later(self) -> None:
        """As long as memory is shared, see from time to time that no more of it is kept than is needed: the other side
        may wait until it hears from this one."""
        if self._tidying is None and (self._writer.has_blocks or self._reader.has_blocks):
            self._tidying = self._loop.call_later(SPARE_SECONDS, self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        self._tell(self._writer.take_back(NOTHING_RETURNED))
        if self._writer.has_blocks or self._reader.has_blocks:
            self.send(self._reader.returned() or NOTHING_RETURNED)

    def _put(self, buffers: Sequence[Buffer]) -> None:
        if not self._in_turn:
            self._loop.call_soon(self._end_turn)
        self._unsent += buffers
        self._in_turn += 1
        if self._in_turn == self._half:
            self._flush()

    def _end_turn(self) -> None:
        self._half = (self._in_turn + 1) // 2 if self._in_turn > 1 else 0
        self._in_turn = 0
        if self._unsent:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if len(unsent) == 1:
            self._transport.write(unsent[0])
        else:
            self._transport.writelines(unsent)

    def close(self) -> None:
        """End it. The owner is not told."""
        self._owner = _Nobody()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        """Frames, or pieces of them."""
        try:
            received = self._reader.feed(data)
        except OSError as error:  # memory of a process that has just ended, or no descriptors left
            log.warning("cannot open the memory of a model's process: %s", error)
            self._abort()
            return
        except msgspec.MsgspecError:
            log.exception("cannot read what a model's process says")
            self._abort()
            return
        tensors: memoryview | None = None
        while received:
            reply, tensors = received.pop(0)
            if isinstance(reply, Returned):
                self._tell(self._writer.take_back(reply))
            else:
                # A block is lent for as long as a client reads it. If all are, what is large goes through the socket.
                self._owner.on_reply(reply, tensors)
        del tensors
        if returned := self._reader.returned():
            self.send(returned)
        self._tidy_later()

    def _abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def _tell(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._put([data])

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._writer.close()
        self._reader.close()
        self._owner.on_lost()


class _Nobody:
    on_reply: Callable[[Reply, memoryview], None] = staticmethod(lambda reply, data: None)
    on_lost: Callable[[], None] = staticmethod(lambda: None)
