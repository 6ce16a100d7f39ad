"""The servers that are measured: how each is started, when it is ready, and what it costs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from repository import MODELS, UNBATCHED, write_repository

READY_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server does not start, or is not installed; the message is one line."""


@dataclass(frozen=True)
class Place:
    """Where a server runs.

    Attributes:
        peers: the environment that the peers are installed in. scratch: a folder for what servers need to have written.
        mlp: the ONNX file. port: for HTTP; gRPC has the next one.
    """

    peers: Path
    scratch: Path
    mlp: Path
    port: int

    def python(self) -> str:
        return str(self.peers / "bin" / "python")

    def packages(self) -> Path:
        found = next(self.peers.glob("lib/python3.*/site-packages"), None)
        if found is None:
            raise ServerError(f"there is no Python environment in {self.peers}: see benchmarks/hosting/README.md")
        return found


@dataclass(frozen=True)
class Launch:
    """A command, and the variables that it needs."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def octavo(model: str, place: Place) -> Launch:
    """Octavo, of the environment that this runs in."""
    names = {"identity": "Identity", "sleeper": "Sleeper", "sleeper_alone": "SleeperAlone", "upper": "upper"}
    if model.startswith("mlp"):
        target = [str(place.mlp), "--served-model-name", model]
        target += ["--max-batch-size", "1"] if model.endswith(UNBATCHED) else []
    else:
        target = [f"{MODELS / 'for_octavo.py'}:{names[model]}"]
    return Launch([str(Path(sys.executable).with_name("octavo")), "serve", *target, "--port", str(place.port)])


def triton(model: str, place: Place) -> Launch:
    """The Triton in PyTriton's wheel, without PyTriton, which only starts it and adds a copy of every tensor."""
    package = place.packages() / "pytriton" / "tritonserver"
    folder = place.scratch / f"triton-{model}"
    backend = folder / "backends" / "python"
    shutil.copytree(package / "backends" / "python", backend)
    version = place.packages().parent.name.removeprefix("python")
    shutil.copy(package / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    write_repository(folder / "models", model)
    options = {
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": place.port,
        "grpc-address": "127.0.0.1",
        "grpc-port": place.port + 1,
        "allow-metrics": "false",
    }
    return Launch(
        [str(package / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())],
        {
            "LD_LIBRARY_PATH": str(place.packages() / "nvidia_pytriton.libs"),
            "PATH": f"{place.peers / 'bin'}:{os.environ['PATH']}",  # its models run in the Python found there
            "MLP": str(place.mlp),
        },
    )


def octavo_repository(model: str, place: Place) -> Launch:
    """Octavo with what Triton serves: the same files."""
    models = place.scratch / f"octavo-{model}"
    write_repository(models, model, place.mlp if model == "ensemble_onnx" else None)
    command = [str(Path(sys.executable).with_name("octavo")), "serve", "--model-repository", str(models)]
    return Launch([*command, "--port", str(place.port)], {"MLP": str(place.mlp)})


def litserve(model: str, place: Place) -> Launch:
    return Launch([place.python(), str(MODELS / "for_litserve.py"), model, str(place.port)], {"MLP": str(place.mlp)})


def bentoml(model: str, place: Place) -> Launch:
    service = f"for_bentoml:{model.title().replace('_', '')}"
    command = [place.python(), "-m", "bentoml", "serve", service, "--working-dir", str(MODELS)]
    return Launch(
        [*command, "--host", "127.0.0.1", "--port", str(place.port)],
        {"BENTOML_HOME": str(place.scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"},
    )


def fastapi(model: str, place: Place) -> Launch:
    command = [place.python(), "-m", "uvicorn", "for_fastapi:app", "--app-dir", str(MODELS), "--no-access-log"]
    loads_mlp = {"MLP": str(place.mlp)} if model.startswith("mlp") else {}
    return Launch([*command, "--port", str(place.port)], loads_mlp)


@dataclass(frozen=True)
class System:
    """A kind of server: how it is started, the path that says when it is ready, and whether it computes when idle."""

    launch: Callable[[str, Place], Launch]
    ready: str
    polls: bool = False


SYSTEMS = {
    "octavo": System(octavo, "/ready"),
    "triton": System(triton, "/v2/health/ready"),
    "octavo-repository": System(octavo_repository, "/v2/health/ready"),
    "litserve": System(litserve, "/health", polls=True),
    "bentoml": System(bentoml, "/readyz"),
    "fastapi": System(fastapi, "/docs"),
}


class Server:
    """A server with one model, in processes of its own.

    Attributes:
        port: of HTTP. ready_seconds: from the start of the process until it said that it is ready.

    Raises:
        ServerError: it does not start.
    """

    def __init__(self, system: str, model: str, peers: Path, scratch: Path, mlp: Path) -> None:
        self.system, self.model, self.port = system, model, _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{system}-{model}-", dir=scratch))
        launch = SYSTEMS[system].launch(model, Place(peers, self._folder, mlp, self.port))
        self._log = self._folder / "log"
        began = time.perf_counter()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    launch.command,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env={**os.environ, **launch.environment},
                    start_new_session=True,  # which is how its processes are found
                )
        except OSError as error:
            raise ServerError(f"{system} cannot be started: {error}") from None
        try:
            self._wait(SYSTEMS[system].ready)
        except BaseException:
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - began

    def cpu_seconds(self) -> float:
        """What its processes have computed until now."""
        return sum(int(fields[11]) + int(fields[12]) for _, fields in self._processes()) / TICKS

    def pause(self) -> None:
        """Keep it from computing while others are measured, if it is one that does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End its processes."""
        self.resume()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        for pid, _ in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        for pid, _ in self._processes() if SYSTEMS[self.system].polls else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> list[tuple[int, list[str]]]:
        """Those of its session and all that they started, each with the fields of /proc/PID/stat from the third on."""
        found, ours = [], {self._process.pid}
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                stats.append((int(path.parent.name), path.read_text().rpartition(")")[2].split()))
        for pid, fields in sorted(stats):  # parents come before their children
            if pid in ours or int(fields[1]) in ours or int(fields[3]) == self._process.pid:
                ours.add(pid)
                found.append((pid, fields))
        return found

    def _wait(self, path: str) -> None:
        ends = time.monotonic() + READY_TIMEOUT
        while not _answers(self.port, path):
            if self._process.poll() is not None:
                raise ServerError(f"{self.system} ended with {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > ends:
                raise ServerError(f"{self.system} was not ready in {READY_TIMEOUT:.0f} s: {self._last_words()}")
            time.sleep(0.01)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it says nothing"


def _answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def _free_port() -> int:
    """A port that nobody has, nor the next one."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port
