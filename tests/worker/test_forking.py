"""Processes that are forked from one that has imported what they need."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from octavo.worker.forking import UNKNOWN_STATUS, ForkServer, ForkServerGone
from octavo.worker.launcher import LocalLauncher, LocalProcess, WorkerSpec
from tests.worker.engines import run

CODE = """
import json, os, random, sys, threading
import numpy

imported = os.getpid()

def main():
    report = os.dup(1)
    os.dup2(2, 1)
    wish = json.loads(os.read(0, 1 << 16))
    said = {
        "imported": imported, "pid": os.getpid(), "session": os.getsid(0), "arguments": sys.argv[1:],
        "drawn": [random.random(), numpy.random.random()], "environment": os.environ.get("WISHED"),
        "threads": threading.active_count(), "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    }
    os.write(report, json.dumps(said).encode() + b"\\n")
    if wish["status"] is None:
        os.read(0, 1)
        os._exit(0)
    return wish["status"]

if __name__ == "__main__":
    sys.exit(main())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "forked_module.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "forked_module"


def spec(module: str, status: int | None = None, **more: object) -> WorkerSpec:
    configuration = f'{{"status": {"null" if status is None else status}}}'.encode()
    return WorkerSpec(name="a b", module=module, configuration=configuration, forks=True, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def launching() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    try:
        yield launcher
    finally:
        launcher.close()


async def said(process: LocalProcess) -> dict[str, object]:
    found: dict[str, object] = json.loads(await asyncio.wait_for(process.read(), 60))
    return found


def test_more_are_asked_for_at_once_than_a_socket_holds(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.worker.forking.MOST_STARTING", 2)

    async def test() -> None:
        server = ForkServer(module)
        server._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is
        nothing = os.open(os.devnull, os.O_RDWR)
        asked = [server.fork((str(each), "many"), nothing, nothing) for each in range(20)]
        forked = await asyncio.wait_for(asyncio.gather(*asked), 60)
        os.close(nothing)
        assert len({each.pid for each in forked}) == len(forked)
        await asyncio.gather(*(each.wait() for each in forked))
        server.close()

    run(test)


def test_they_are_processes_of_their_own(module: str) -> None:
    async def test() -> None:
        async with launching() as launcher:
            processes = [await launcher.launch(spec(module)) for _ in range(3)]
            heard = [await said(each) for each in processes]
            assert len({each["imported"] for each in heard}) == 1
            assert heard[0]["imported"] not in [each.pid for each in processes]
            for process, each in zip(processes, heard, strict=True):
                assert each["pid"] == each["session"] == process.pid
                assert each["arguments"] == [process.address, "a b"]
                assert each["threads"] == 1
                assert each["files"] == [0, 1, 2, 3]
                assert psutil.Process(process.pid).name() == "a b"
            for at in range(2):  # of the generators of both libraries
                assert len({each["drawn"][at] for each in heard}) == 3  # type: ignore[index]
            for each in processes:
                await each.end(10)
                assert await each.wait() in (0, -signal.SIGTERM)

    run(test)


def test_how_they_end_is_told(module: str) -> None:
    async def test() -> None:
        async with launching() as launcher:
            left = await launcher.launch(spec(module, 7))
            killed = await launcher.launch(spec(module))
            await said(killed)
            killed.kill()
            assert await asyncio.wait_for(left.wait(), 60) == 7
            assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
            killed.kill()  # which is nobody, or somebody else

    run(test)


def test_what_needs_an_environment_of_its_own_is_started(module: str) -> None:
    async def test() -> None:
        async with launching() as launcher:
            process = await launcher.launch(spec(module, 0, environment={"WISHED": "yes"}))
            heard = await said(process)
            assert heard["environment"] == "yes"
            assert heard["imported"] == heard["pid"] == process.pid
            assert await process.wait() == 0

    run(test)


def test_one_that_cannot_be_forked_is_started(module: str, tmp_path: Path) -> None:
    """Of a module that ends the process that imports it, say: it ends the one that is started just so, too."""
    (tmp_path / "forked_module.py").write_text("import sys; sys.exit(5)")

    async def test() -> None:
        async with launching() as launcher:
            process = await launcher.launch(spec(module))
            assert await asyncio.wait_for(process.wait(), 60) == 5

    run(test)


def test_processes_outlive_the_one_that_they_were_forked_from(module: str) -> None:
    async def test() -> None:
        async with launching() as launcher:
            first, second = await launcher.launch(spec(module)), await launcher.launch(spec(module))
            heard = await said(first)
            await said(second)
            [origin] = launcher._fork_servers.values()
            os.kill(int(str(heard["imported"])), signal.SIGKILL)
            while not origin.gone:
                await asyncio.sleep(0.01)
            with pytest.raises(ForkServerGone):
                await origin.fork(("a", "b"), 0, 1)
            assert psutil.Process(first.pid).is_running()
            heir = await launcher.launch(spec(module))
            assert (await said(heir))["imported"] != heard["imported"]
            first.kill()
            assert await asyncio.wait_for(first.wait(), 60) == UNKNOWN_STATUS
            await second.end(10)
            assert await asyncio.wait_for(second.wait(), 60) == UNKNOWN_STATUS
            heir.kill()
            assert await asyncio.wait_for(heir.wait(), 60) == -signal.SIGKILL

    run(test)


def test_one_that_nobody_waits_for_any_more_is_ended(module: str, tmp_path: Path) -> None:
    (tmp_path / "forked_module.py").write_text(CODE + "__import__('time').sleep(0.2)\n")

    async def test() -> None:
        async with launching() as launcher:
            launch = asyncio.create_task(launcher.launch(spec(module)))
            while not launcher._fork_servers:
                await asyncio.sleep(0)
            launch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launch
            [origin] = launcher._fork_servers.values()
            while origin._starting:
                await asyncio.sleep(0.01)
            while origin._running:
                await asyncio.sleep(0.01)

    run(test)
