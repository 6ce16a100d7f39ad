"""Both servers, on one repository."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    """A server. Attributes: http, grpc: where it listens."""

    name: str
    http: str
    grpc: str

    def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        return httpx.request(method, f"http://{self.http}{path}", timeout=60, **more)  # type: ignore[arg-type]


def _free_ports() -> tuple[int, int]:
    """Below those that the system gives to clients: Triton takes its ports only after it has loaded all models."""
    while True:
        port = random.randrange(10_000, 32_000)
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            return port, port + 1


def _triton(environment: Path, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """The Triton of PyTriton's wheel, without PyTriton."""
    [packages] = environment.glob("lib/python3.*/site-packages")
    server = packages / "pytriton" / "tritonserver"
    backend = scratch / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    stub = server / "python_backend_stubs" / packages.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    options = [f"--backend-directory={scratch / 'backends'}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command = [str(server / "bin" / "tritonserver"), *options, "--allow-metrics=false", "--exit-on-error=false"]
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    return command, {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PATH": path}


@contextmanager
def serving(name: str, repository: Path, scratch: Path, *options: str) -> Iterator[Served]:
    """One of them, for as long as the context lasts."""
    http, grpc = _free_ports()
    environment: dict[str, str] = {}
    if name == "triton":
        command, environment = _triton(Path(os.environ["OCTAVO_TRITON"]), scratch)
        command += [f"--http-port={http}", f"--grpc-port={grpc}"]
    else:
        command = [sys.executable, "-m", "octavo", "serve", "--port", str(http), "--exit-on-error=false"]
        command += ["--allow-client-shm"]  # as Triton 2.51 always has it
    log = scratch / f"{name}.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, f"--model-repository={repository}", *options],
            stdout=written,
            stderr=written,
            env={**os.environ, **environment},
        )
    served = Served(name, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    try:
        ends = time.monotonic() + READY_SECONDS
        while not _is_live(served, options):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < ends, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        yield served
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _is_live(served: Served, options: Sequence[str]) -> bool:
    """Whether it has done all that it does at its start: a model that is broken keeps it from being ready."""
    wanted = {each.removeprefix("--load-model=") for each in options if each.startswith("--load-model=")} - {"*"}
    try:
        index = served.ask("POST", "/v2/repository/index").json()
    except (httpx.HTTPError, ValueError):
        return False
    states = [each.get("state") for each in index if not wanted or each["name"] in wanted]
    return bool(states) and all(each in ("READY", "UNAVAILABLE") for each in states)
