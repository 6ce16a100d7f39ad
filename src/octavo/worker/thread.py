"""Workers on threads of this process, for programs that want no other one.

A thread cannot be ended from outside. It learns that it is to end when it reports something and when something arrives
at its endpoint, so both happen often enough or are brought about.
"""

import asyncio
import importlib
import logging
import os
import threading
from pathlib import Path

import zmq

from octavo.worker.control import Report, encode
from octavo.worker.folder import PrivateFolder
from octavo.worker.frames import Kind, pack
from octavo.worker.launcher import WorkerSpec

log = logging.getLogger(__name__)

WAKE_SECONDS = 0.2
"""For an endpoint to receive what wakes it."""


class Stopped(BaseException):
    """The worker is not wanted any more."""


class ThreadLauncher:
    """Starts workers by calling `work(parent, address)` of their modules on threads. Variables and descriptors of a
    specification are this process's business here."""

    def __init__(self) -> None:
        self._folder = PrivateFolder()
        self._launched = 0

    async def launch(self, spec: WorkerSpec, before: bytes = b"") -> "ThreadWorker":
        """Start a thread that listens at a socket in a private folder. How the program logs is its own business."""
        self._launched += 1
        return ThreadWorker(spec, self._folder.path / str(self._launched))

    def close(self) -> None:
        """Remove the folder of sockets."""
        self._folder.close()


class ThreadParent:
    """The supervisor, as the thread that it started sees it: `octavo.worker.process.Parent` for threads.

    Attributes:
        configuration: of the worker.
        stopping: whether it is to end.
    """

    def __init__(self, worker: "ThreadWorker", configuration: bytes) -> None:
        self.configuration = configuration
        self.stopping = False
        self._worker = worker

    def report(self, report: Report) -> None:
        """Tell the supervisor something. Raises Stopped."""
        if self.stopping:
            raise Stopped
        self._worker.tell(encode(report))


class ThreadWorker:
    """A worker on a thread, in the place of a process."""

    def __init__(self, spec: WorkerSpec, socket: Path) -> None:
        self.address = f"ipc://{socket}"
        self.pid = os.getpid()
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._status = 1
        self._parent = ThreadParent(self, spec.configuration)
        threading.Thread(target=self._run, args=(spec,), name=f"octavo-{spec.name}", daemon=True).start()

    def write(self, line: bytes) -> None:
        """Orders are for processes: a thread sees what its program sees."""

    async def read(self) -> bytes:
        """The next line that the worker reported; empty when it has ended."""
        return await self._lines.get()

    async def wait(self) -> int:
        """Wait until it has ended, and remove its socket. Returns what would be the exit status of a process."""
        await self._ended.wait()
        self._socket.unlink(missing_ok=True)
        return self._status

    async def end(self, grace: float) -> None:
        """Have it end and wait until it has; what it computes at the moment is computed to its end, however long."""
        self.kill()
        await self._ended.wait()

    def kill(self) -> None:
        """Have it end."""
        self._parent.stopping = True
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        with socket:
            socket.setsockopt(zmq.LINGER, int(WAKE_SECONDS * 1e3))
            socket.connect(self.address)
            socket.send(pack(Kind.BEAT, 0))

    def tell(self, line: bytes) -> None:
        """Pass a line from the thread to the loop."""
        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)

    def _run(self, spec: WorkerSpec) -> None:
        try:
            self._status = importlib.import_module(spec.module).work(self._parent, self.address)
        except Stopped:
            self._status = 0
        except Exception:
            log.exception("%s failed", spec.name)
        self.tell(b"")
        self._loop.call_soon_threadsafe(self._ended.set)
