"""`octavo serve` in processes of its own, for tests of what becomes of requests when one of these dies."""

import contextlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
import pytest


@dataclass
class Server:
    """A server that is ready."""

    process: subprocess.Popen[str]
    url: str

    def find(self, module: str) -> list[psutil.Process]:
        """Its processes that run this module."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if module in child.cmdline():
                    found.append(child)
        return found

    def engine(self, name: str) -> psutil.Process:
        """The engine of a deployment."""
        [found] = [engine for engine in self.find("octavo.engine.process") if engine.cmdline()[-1] == f"{name} v1"]
        return found

    @property
    def frontends(self) -> list[psutil.Process]:
        return self.find("octavo.server.process")


@contextmanager
def serving(*arguments: object, temporary: str | None = None, descriptors: int | None = None) -> Iterator[Server]:
    """`octavo serve` on a free port, once all its models are ready.

    Args:
        temporary: its folder for temporary files. descriptors: the most that each of its processes may have open.
    """

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    command = [sys.executable, "-m", "octavo", "serve", *map(str, arguments), "--port", "0"]
    environment = os.environ | ({"TMPDIR": temporary} if temporary else {})
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=limit) as process:
        try:
            yield Server(process, _wait_until_ready(process))
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"ready on (http://\S+)", line):
            url = found[1]
            while httpx.get(f"{url}/ready", timeout=20).status_code != 200:
                pass
            return url
    pytest.fail("".join(said))
