"""Starting processes. Here on this machine; another launcher may start them elsewhere, and say where they listen."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from octavo.worker.folder import PrivateFolder
from octavo.worker.forking import ForkServer, ForkServerGone
from octavo.worker.forks import keep_from_forks

CAN_FORK = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Elsewhere the system's own libraries do not survive it."""

MAX_LINE = 64 * 2**20
"""Bytes of a line that a process may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What to start.

    Attributes:
        name: unique among the workers of a supervisor.
        module: is run as `python -m MODULE ADDRESS NAME`; the name is for whoever lists processes.
        configuration: one line, the first that the process reads from its standard input.
        environment: variables that are set for it, beside those of this process.
        files: descriptors that it inherits.
        informed: whether it is told where the other workers stand.
        forks: whether it may be forked from a process that has imported the module, where that can be done: what the
            module imports starts no threads and opens nothing.
    """

    name: str
    module: str
    configuration: bytes
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[int, ...] = ()
    informed: bool = False
    forks: bool = False


class Process(Protocol):
    """One process that was launched.

    Attributes:
        address: where it listens. pid: its number on the machine where it runs.
    """

    @property
    def address(self) -> str: ...

    @property
    def pid(self) -> int: ...

    def write(self, line: bytes) -> None:
        """Send a line. Never waits; what a process that has ended does not read is lost."""
        ...

    async def read(self) -> bytes:
        """The next line that the process wrote; empty when it has ended."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended. Returns its exit status, negative for a signal."""
        ...

    async def end(self, grace: float) -> None:
        """Ask it to end by ending its standard input; end it by force after so many seconds."""
        ...

    def kill(self) -> None:
        """End it by force."""
        ...


class Launcher(Protocol):
    """Starts processes."""

    async def launch(self, spec: WorkerSpec, before: bytes = b"") -> Process:
        """Start a process.

        Args:
            before: a line that it reads before its configuration.

        Raises:
            OSError: no memory, no descriptors, no processes left.
        """
        ...

    def close(self) -> None:
        """Give back what the launcher holds; all its processes have ended."""
        ...


class LocalLauncher:
    """Starts processes on this machine, in sessions of their own: what a terminal sends to the foreground passes by."""

    def __init__(self) -> None:
        self._folder = PrivateFolder()
        self._launched = 0
        self._fork_servers: dict[str, ForkServer] = {}

    async def launch(self, spec: WorkerSpec, before: bytes = b"") -> "LocalProcess":
        """As `Launcher.launch`; it listens at a socket in a private folder."""
        self._launched += 1
        socket = self._folder.path / str(self._launched)
        address = f"ipc://{socket}"
        reading, writing = os.pipe()
        stdin = os.fdopen(writing, "wb", buffering=0)
        try:
            process, stdout = await self._start(spec, address, reading)
        except BaseException:
            stdin.close()
            raise
        finally:
            os.close(reading)
        keep_from_forks(stdin)
        pipe, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, stdin)
        launched = LocalProcess(process, pipe, stdout, address, socket)
        launched.write(before + spec.configuration + b"\n")
        return launched

    async def _start(self, spec: WorkerSpec, address: str, stdin: int) -> tuple["_Started", asyncio.StreamReader]:
        if spec.forks and not spec.environment and not spec.files and CAN_FORK:
            with contextlib.suppress(ForkServerGone):
                return await self._fork(spec, address, stdin)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", spec.module, address, spec.name),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            start_new_session=True,
            env={**os.environ, **spec.environment},
            pass_fds=spec.files,
        )
        assert process.stdout is not None
        return process, process.stdout

    async def _fork(self, spec: WorkerSpec, address: str, stdin: int) -> tuple["_Started", asyncio.StreamReader]:
        server = self._fork_servers.get(spec.module)
        if server is None or server.gone:
            if server is not None:
                server.close()
            server = self._fork_servers[spec.module] = ForkServer(spec.module)
        reading, writing = os.pipe()
        stdout = os.fdopen(reading, "rb", buffering=0)
        try:
            process = await server.fork((address, spec.name), stdin, writing)
        except BaseException:
            stdout.close()
            raise
        finally:
            os.close(writing)
        reader = asyncio.StreamReader(MAX_LINE)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdout)
        return process, reader

    def close(self) -> None:
        """Remove the folder of sockets."""
        for each in self._fork_servers.values():
            each.close()
        self._folder.close()


class _Started(Protocol):
    """What is done with a process, however it was started."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class LocalProcess:
    """A process on this machine."""

    def __init__(
        self,
        process: _Started,
        stdin: asyncio.WriteTransport,
        stdout: asyncio.StreamReader,
        address: str,
        socket: Path,
    ) -> None:
        self.address = address
        self.pid = process.pid
        self._socket = socket
        self._process = process
        self._stdin, self._stdout = stdin, stdout

    def write(self, line: bytes) -> None:
        """Send a line. Never waits."""
        if not self._stdin.is_closing():
            self._stdin.write(line)  # if it has ended, waiting for it tells how

    async def read(self) -> bytes:
        """The next line that the process wrote; empty when it has ended."""
        return await self._stdout.readline()

    async def wait(self) -> int:
        """Wait until it has ended. Then what it has started goes, too, unless that heeds no SIGTERM or has a session of
        its own; and its socket, with what was put beside it under the same name with something behind a dot."""
        status = await self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)  # no other one has its number so soon: the system takes the next ones
        self._socket.unlink(missing_ok=True)
        for name in os.listdir(self._socket.parent):  # not with a pattern: those of all processes would be remembered
            if name.startswith(f"{self._socket.name}."):
                self._socket.with_name(name).unlink(missing_ok=True)
        return status

    async def end(self, grace: float) -> None:
        """End its standard input, and itself by force after so many seconds."""
        self._stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()  # heeded only until it reads its standard input
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End it by force."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
