"""A supervisor's end of a process that forks others (`octavo.worker.forkserver`)."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque

import msgspec

from octavo.worker.forkserver import MAX_PACKET, Ended, Fork, News, Refused, Started

MOST_STARTING = 64
"""That are asked for at once: what a socket holds is bounded, in packets and in descriptors."""

UNKNOWN_STATUS = 255
"""Of a process that ended when nobody was left to say how."""

_encoder = msgspec.msgpack.Encoder()
_news: "msgspec.msgpack.Decoder[News]" = msgspec.msgpack.Decoder(News)


class ForkServerGone(Exception):
    """There is no process to fork from any more; one has to be started otherwise."""


class Forked:
    """A process that was forked. Attributes: pid: its number, for as long as it lives."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            self._handle = os.pidfd_open(pid)
        except OSError:  # it has ended already, which is told next; or a sandbox has no such call
            self._handle = -1

    async def wait(self) -> int:
        """Wait until it has ended. Returns its exit status, negative for a signal."""
        return await asyncio.shield(self.status)

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError: it has ended."""
        if self.status.done():
            raise ProcessLookupError
        if self._handle < 0:
            os.kill(self.pid, number)
        else:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Send SIGTERM. Raises ProcessLookupError."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL. Raises ProcessLookupError."""
        self.send_signal(signal.SIGKILL)

    def note_end(self, status: int) -> None:
        """It has ended."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if not self.status.done():
            self.status.set_result(status)

    def watch(self) -> None:
        """Find out by itself that it ends: nobody tells."""
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(self._handle)
            self.note_end(UNKNOWN_STATUS)

        if self._handle < 0:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
            self.note_end(UNKNOWN_STATUS)
        else:
            loop.add_reader(self._handle, end)


class ForkServer:
    """Forks processes of a module, as soon as one has imported it.

    Attributes:
        gone: whether nothing can be forked any more.

    Raises:
        OSError: no memory, no processes left.
    """

    def __init__(self, module: str) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "octavo.worker.forkserver", str(theirs.fileno()), module],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(theirs.fileno(),),
                )
            except BaseException:
                self._connection.close()
                raise
        self._connection.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(MOST_STARTING)
        self._starting: deque[asyncio.Future[Forked]] = deque()
        self._running: dict[int, Forked] = {}
        self.gone = False
        self._loop.add_reader(self._connection.fileno(), self._on_readable)

    async def fork(self, arguments: tuple[str, ...], stdin: int, stdout: int) -> Forked:
        """Start a process with this standard input and output, and the standard error of this one.

        Raises:
            OSError: no memory, no processes left. ForkServerGone: nothing can be forked any more.
        """
        async with self._room:
            return await self._fork(Fork(arguments), stdin, stdout)

    async def _fork(self, wish: Fork, stdin: int, stdout: int) -> Forked:
        if self.gone:
            raise ForkServerGone
        started: asyncio.Future[Forked] = self._loop.create_future()
        try:
            socket.send_fds(self._connection, [_encoder.encode(wish)], [stdin, stdout])
        except (BrokenPipeError, ConnectionResetError):
            raise ForkServerGone from None
        self._starting.append(started)
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(_kill)
            raise

    def close(self) -> None:
        """Fork nothing any more. What was forked goes on."""
        if not self.gone:
            self._part()
        self._process.kill()
        self._process.wait()

    def _on_readable(self) -> None:
        try:
            while packet := self._connection.recv(MAX_PACKET):
                self._note(_news.decode(packet))
        except BlockingIOError:
            return
        except OSError:
            pass
        self._part()

    def _note(self, news: News) -> None:
        match news:
            case Started(pid):
                forked = self._running[pid] = Forked(pid)
                self._starting.popleft().set_result(forked)
            case Refused(error):
                self._starting.popleft().set_exception(OSError(error, os.strerror(error)))
            case Ended(pid, status):
                self._running.pop(pid).note_end(status)

    def _part(self) -> None:
        self.gone = True
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        for each in self._running.values():
            each.watch()
        self._running.clear()
        while self._starting:
            self._starting.popleft().set_exception(ForkServerGone())


def _kill(started: "asyncio.Future[Forked]") -> None:
    """Nobody wants a process any more that was started."""
    if started.exception() is None:
        with contextlib.suppress(ProcessLookupError):
            started.result().kill()
