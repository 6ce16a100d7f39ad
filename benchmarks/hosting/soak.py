"""Mixed load on a repository for minutes: nothing lost, nothing wrong, nothing left behind, memory flat.

    python benchmarks/hosting/soak.py [--minutes 10] [--clients 16] [--api-workers 2]

Clients ask over HTTP and gRPC for what models compute, ask others for, add up and stream, for what they refuse and fail
at, and leave in the midst; meanwhile models are loaded anew, load and unload, end themselves, and processes are killed.
What a client must get is known for every request. With one frontend clients pass tensors in memory of theirs, too; with
more of them the youngest is killed now and then, and the others are there to the end.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from soak_clients import REGION, Client, Shift, Tally, crash
from soak_memory import TENSORS, Sample, family, judged, kind_of, sample, say, zombies
from soak_models import KILLED, RELOADED, make_repository, write_again
from soak_wires import OK, Ask, Http, Outcome

RELOAD_SECONDS, COME_SECONDS, KILL_SECONDS, CRASH_SECONDS = 4.0, 7.0, 11.0, 45.0
SAMPLE_SECONDS = 3.0

KILL_AT, REST_AT = 40.0, 105.0
"""Seconds of load after which a frontend is killed, and nobody asks for anything for a while."""

SHOWN = 20

REST_SECONDS = 15.0
"""For memory that was shared to be given back, before it is looked at what is left."""

OWN = ("octavo", REGION)
"""How names in /dev/shm begin that are of these servers and clients."""

EXPECTED = re.compile(
    rb"the process of \S+ v\d+( instance \d+)? was ended by SIGKILL; restarting it"
    rb"|the process of frontend \d was ended by SIGKILL; restarting it"
    rb"|the process of crashes v1 ended with status 3; restarting it"
    rb"|model comes cannot be loaded: .*as it was written"
    rb"|model (first|second) cannot be loaded: .*was ended by SIGKILL while loading"
    rb"|\S+ v\d+( instance \d+)?: \S+ failed: ValueError: as it was told to"
    rb"|comes v\d+: \S+ cannot be imported"
)
"""Errors in the log that there must be."""

ERROR = re.compile(rb"^\S+ \S+ (?:ERROR|CRITICAL) (.*)$", re.MULTILINE)

OWN_FILES = 8
"""In the server's folders, besides two for each process: what clients have sent and what is stored."""

KEEPS = ("--cache-config", f"local,size={16 * 2**20}")
TRACES = "traces.json"

DEFECTS = re.compile(rb"^.*(?:Exception ignored|never retrieved|never awaited|ResourceWarning).*$", re.MULTILINE)


class Soak:
    """A server under load.

    Args:
        server: its first process. folder: of its repository.
    """

    def __init__(self, port: int, server: psutil.Process, folder: Path, frontends: int) -> None:
        self._shift = Shift()
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.rests: list[Sample] = []
        self.left: list[str] = []
        self.metrics: list[int] = []
        self._port = port
        self._server = server
        self._folder = folder
        self._frontends = frontends

    async def run(self, minutes: float, clients: int) -> None:
        """Load it for so long."""
        shift = self._shift
        shift.begin(minutes * 60)
        made = [Client(self._port, number, self.tally, regions=self._frontends == 1) for number in range(clients)]
        await asyncio.gather(
            *(each.run(shift) for each in made),
            crash(self._port, shift, CRASH_SECONDS, self.tally),
            self._reload(),
            self._come_and_go(),
            self._kill_models(),
            self._watch(),
            self._rest(),
        )
        await self._look_at_rest()

    async def _control(self, path: str, parameters: dict[str, str], expected: int = 200) -> bool:
        """Load or unload a model. Returns whether what must come of it did."""
        body = json.dumps({"parameters": parameters}).encode()
        wire, began = Http(self._port), time.monotonic()
        found = await wire.ask(f"/v2/repository/models/{path}", body)
        await wire.close()
        outcome = found if isinstance(found, Outcome) else Outcome(str(found[0]), found[2].decode(errors="replace"))
        loading = "ended by SIGKILL while loading" in outcome.message and self.tally.killed("model", began)
        if self.tally.note(path, outcome, began) and outcome.code != str(expected) and not loading:
            self.tally.note_wrong(began, f"{path}: {outcome.code}: {outcome.message[:300]}")
        return outcome.code == str(expected)

    async def _reload(self) -> None:
        """Load models anew, from files that have been written again."""
        generation = 0
        async for _ in self._shift.turns(RELOAD_SECONDS):
            name = random.choice(RELOADED)
            generation += 1
            write_again(self._folder, name, generation)
            if await self._control(f"{name}/load", {}):
                self.tally.generations[name] = generation

    async def _come_and_go(self) -> None:
        """Have a model unloaded and loaded, with what the repository has and with what this client has; one that cannot
        be loaded leaves what is there."""
        code = (self._folder / "comes" / "1" / "model.py").read_bytes()
        config = (
            '{"backend": "python", "max_batch_size": 8, "dynamic_batching": {}, "instance_group": [{"count": 2}], %s}'
        )
        tensors = (
            f'"{kind}": [{{"name": "{name}", "data_type": "TYPE_FP32", "dims": [-1]}}]'
            for kind, name in (("input", "IN"), ("output", "OUT"))
        )
        config %= ", ".join(tensors)
        own = {"config": config, "file:1/model.py": base64.b64encode(code).decode()}
        broken = {**own, "file:1/model.py": base64.b64encode(b"raise ValueError('as it was written')").decode()}
        async for _ in self._shift.turns(COME_SECONDS):
            if await self._control("comes/load", random.choice(({}, own, {"config": config}))):
                await self._answers("comes", OK)
                await self._control("comes/load", broken, 400)
                await self._answers("comes", OK)
            if await self._control("comes/unload", {}):
                await self._answers("comes", "NOT_FOUND")
        await self._control("comes/load", own)  # whose files must go with the server

    async def _answers(self, model: str, code: str) -> None:
        """See that a model answers so."""
        wire, began = Http(self._port), time.monotonic()
        array = np.full((1, 70_000), 1, np.float32)
        outcome = await wire.infer(Ask(model, array))
        await wire.close()
        if self.tally.note(model, outcome, began) and outcome.code != code:
            self.tally.note_wrong(began, f"{model}: {outcome.code}, not {code}: {outcome.message[:300]}")

    async def _kill_models(self) -> None:
        async for _ in self._shift.turns(KILL_SECONDS):
            await self._kill("model", [f"model {each}" for each in KILLED], random.choice)

    async def _rest(self) -> None:
        """Let the server rest now and then: what it has then is its own, and no request's."""
        while await self._shift.sleep(KILL_AT):
            if self._frontends > 1:
                await self._kill("frontend", ["frontend"], lambda found: found[-1])
            if await self._shift.sleep(REST_AT - KILL_AT):
                await self._shift.pause()
                await self._look_at_rest()
                self._shift.resume()

    async def _look_at_rest(self) -> None:
        """What there is when nobody asks for anything, and what should not be there."""
        await asyncio.sleep(REST_SECONDS)
        found = await asyncio.to_thread(sample, self._server)
        self.rests.append(found)
        files = len(files_in(self._folder.parent / "tmp"))
        processes, dead = len(found.processes), zombies(self._server)
        say(f"at rest: {processes} processes, {files} files of theirs, {found.total:.1f} MiB")
        self.left += await self._left_in_flight()
        if held := {name: count for name, count in found.descriptors.items() if name.endswith(TENSORS)}:
            self.left.append(f"shared memory, {found.shared:.1f} MiB with what is kept: {held}")
        if files > 2 * processes + OWN_FILES:
            self.left.append(f"{files} files of {processes} processes")
        if dead:
            self.left.append(f"{dead} zombies")

    async def _kill(
        self, what: str, kinds: Sequence[str], choose: Callable[[list[psutil.Process]], psutil.Process]
    ) -> None:
        """Kill one of the processes of some kinds."""
        found = [each for each in family(self._server) if is_one_of(each, self._server, kinds)]
        if len(found) > (what == "frontend"):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.tally.kills[what].append(time.monotonic())
                choose(sorted(found, key=lambda each: each.create_time())).kill()
                self.tally.outcomes[f"killed: {what}"] += 1

    async def _watch(self) -> None:
        wire = Http(self._port)
        async for _ in self._shift.turns(SAMPLE_SECONDS):
            found = await asyncio.to_thread(sample, self._server)
            found.requests = self.tally.requests
            self.samples.append(found)
            answer = await wire.ask("/metrics", b"", method="GET")
            if not isinstance(answer, Outcome):
                self.metrics.append(answer[2].count(b"\n"))
            say(f"{found.total:8.1f} MiB {found.requests} requests")
        await wire.close()

    async def _left_in_flight(self) -> list[str]:
        """Requests that wait or are computed, though nobody has asked: as frontends count them."""
        found = []
        for _ in range(4 * self._frontends):  # whichever of them take these connections
            wire = Http(self._port)
            answer = await wire.ask("/metrics", b"", method="GET")
            await wire.close()
            if isinstance(answer, Outcome):
                return [f"no metrics: {answer.message}"]
            lines = answer[2].decode().splitlines()
            pending = [each for each in lines if each.startswith("nv_inference_pending_request_count{")]
            found += [each for each in pending if not each.endswith(" 0.0")]
        return found


def is_one_of(process: psutil.Process, server: psutil.Process, kinds: Sequence[str]) -> bool:
    """Whether a process is of one of some kinds."""
    with contextlib.suppress(psutil.Error, OSError):
        return kind_of(process, server) in kinds
    return False


def troubles(log: bytes, kills: Mapping[str, Sequence[float]]) -> list[str]:
    """What is in the log and should not be."""
    errors: list[bytes] = ERROR.findall(log)
    found = [each for each in errors if not EXPECTED.match(each)] + DEFECTS.findall(log)
    died = sum(b"was ended by SIGKILL" in each for each in errors)
    killed = sum(map(len, kills.values()))
    more = [f"{died} processes were killed, and not {killed}"] if died > killed else []
    return more + [f"in the log: {each[:300].decode(errors='replace')}" for each in found]


def free_port() -> int:
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--api-workers", type=int, default=2)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="soak-"))
    (scratch / "tmp").mkdir()
    make_repository(scratch / "models")
    port = free_port()
    process = start(scratch, port, options.api_workers)
    server = psutil.Process(process.pid)
    soak = Soak(port, server, scratch / "models", options.api_workers)
    try:
        wait(port, process, scratch / "log")
        asyncio.run(soak.run(options.minutes, options.clients))
        left = soak.left
        there = family(server)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    left += [f"process {each.pid}" for each in there if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    left += [str(each) for each in (scratch / "tmp").rglob("*")]
    left += [f"/dev/shm/{each}" for each in os.listdir("/dev/shm") if each.startswith(OWN)]
    left += [f"exit status {status}"] if status else []
    trouble = troubles((scratch / "log").read_bytes(), soak.tally.kills)
    say(f"{len(json.loads((scratch / TRACES).read_bytes()))} parts of traces")
    failed = told(soak, trouble, left)
    if failed:
        say(f"the server's log is {scratch / 'log'}")
    else:
        shutil.rmtree(scratch)
    return failed


def start(scratch: Path, port: int, frontends: int) -> subprocess.Popen[bytes]:
    """A server of the models there, with its log there."""
    octavo = str(Path(sys.executable).with_name("octavo"))
    own = ["--allow-client-shm"] if frontends == 1 else ["--api-workers", str(frontends)]
    models = ["--model-repository", str(scratch / "models"), "--model-control-mode", "explicit", "--load-model", "*"]
    traces = [f"--trace-config={each}" for each in (f"triton,file={scratch / TRACES}", "level=TIMESTAMPS", "rate=50")]
    with (scratch / "log").open("wb") as log:
        return subprocess.Popen(
            [octavo, "serve", *models, *KEEPS, *traces, "--port", str(port), *own],
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(scratch / "tmp")},
        )


def told(soak: Soak, trouble: Sequence[str], left: Sequence[str]) -> bool:
    """Say what has come of it. Returns whether something must not be."""
    tally = soak.tally
    wrong, lost, grown = [*tally.wrong, *trouble], tally.lost, judged(soak.samples, soak.rests)
    say(dict(sorted(tally.outcomes.items())))
    say(f"lines of /metrics: {soak.metrics[len(soak.metrics) // 5]} to {soak.metrics[-1]}")
    say(f"{tally.requests} requests, wrong: {len(wrong)}, lost: {len(lost)}, left: {left}, grown: {grown}")
    for each in (*wrong[:SHOWN], *lost[:SHOWN]):
        say(each)
    return bool(wrong or lost or left or grown)


def files_in(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if not each.is_dir()]


def wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the models are ready."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if b" 200 " in connection.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit(log.read_text(errors="replace")[-2000:])


if __name__ == "__main__":
    sys.exit(main())
