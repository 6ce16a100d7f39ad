"""Mixed load on a repository for minutes: nothing lost, nothing wrong, nothing left behind, memory flat.

    python benchmarks/hosting/soak.py [--minutes 10] [--clients 16]

Clients ask for inferences, small and large, for what the models refuse and fail at, and leave in the midst of requests;
meanwhile models are loaded anew, and processes of models are killed. What a client must get is known for every request.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

say = Console(highlight=False, markup=False, soft_wrap=True).print

MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if array.flat[0] == -1:
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("as it was asked to")))
                continue
            if array.flat[0] == -2:
                time.sleep(0.05)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array * 2)]))
        return answers
"""

CONFIG = """backend: "python"
max_batch_size: 8
dynamic_batching { }
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 2 }]
"""

ENSEMBLE = """platform: "ensemble"
max_batch_size: 8
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }]
ensemble_scheduling { step [
  { model_name: "first" model_version: -1
    input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "twice" } },
  { model_name: "second" model_version: -1
    input_map { key: "IN" value: "twice" } output_map { key: "OUT" value: "OUT" } }
] }
"""

SIZES = (4, 16, 1024, 65_536, 262_144)
RELOAD_SECONDS, KILL_SECONDS, SAMPLE_SECONDS = 3.0, 11.0, 5.0
WARM_UP = 0.2
"""Of the time: what is kept for requests to come has been kept by then."""

MOST_GROWTH = 0.05


@dataclass
class Tally:
    """What became of requests. Attributes: wrong: descriptions of what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def make_repository(folder: Path) -> None:
    for name in ("first", "second"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(MODEL)
        (folder / name / "config.pbtxt").write_text(CONFIG)
    (folder / "both" / "1").mkdir(parents=True)
    (folder / "both" / "config.pbtxt").write_text(ENSEMBLE)


async def request(
    port: int, path: str, body: bytes, *fields: str, leave: float | None = None
) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer. Leaves after so many seconds, which is a TimeoutError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(leave if leave is not None else 60):
            head = "\r\n".join(
                [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *fields, "", ""]
            )
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            sizes = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            return int(answer.split(b" ", 2)[1]), answer, await reader.readexactly(int(sizes[0].split(b":")[1]))
    finally:
        writer.close()


def infer(array: np.ndarray) -> tuple[bytes, str]:
    described = {
        "inputs": [
            {"name": "IN", "datatype": "FP32", "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(described).encode()
    return head + array.tobytes(), f"Inference-Header-Content-Length: {len(head)}"


async def client(port: int, seed: int, ends: float, tally: Tally) -> None:
    drawn = random.Random(seed)
    while time.monotonic() < ends:
        model = drawn.choice(("first", "second", "both"))
        array = np.full((drawn.randint(1, 3), drawn.choice(SIZES)), drawn.random(), np.float32)
        kind = drawn.choices(("right", "slow", "fails", "wrong", "leaves"), (70, 5, 10, 10, 5))[0]
        if kind in ("fails", "slow"):
            array[:, 0] = -1 if kind == "fails" else -2
        if kind == "wrong":
            array = array.reshape(-1)
        body, length = infer(array)
        leave = drawn.random() * 0.01 if kind == "leaves" else None
        try:
            status, head, answer = await request(port, f"/v2/models/{model}/infer", body, length, leave=leave)
        except TimeoutError:
            if kind != "leaves":
                tally.wrong.append(f"no answer to a request of {model} for a minute")
            tally.outcomes["left"] += 1
            continue
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.wrong.append(f"a connection ended without an answer: {error!r}")
            continue
        tally.outcomes[f"{kind} {status}"] += 1
        judge(kind, model, array, status, head, answer, tally)


def judge(kind: str, model: str, array: np.ndarray, status: int, head: bytes, answer: bytes, tally: Tally) -> None:
    """Note what must not be. A process that is killed fails the batch that it computes, and says so."""
    killed = status == 500 and b"the model failed: " in answer
    if kind == "wrong":
        if status != 400:
            tally.wrong.append(f"a wrong shape is answered with {status}: {answer[:200]!r}")
    elif kind == "fails":
        if not (status == 500 and b"as it was asked to" in answer) and not killed:
            tally.wrong.append(f"what fails is answered with {status}: {answer[:200]!r}")
    elif status == 200:
        factor = 4 if model == "both" else 2
        size = int(head.lower().split(b"inference-header-content-length: ")[1].split(b"\r\n")[0])
        if not np.array_equal(np.frombuffer(answer[size:], np.float32), (array * factor).reshape(-1)):
            tally.wrong.append(f"a wrong answer of {model}")
    elif not killed:
        tally.wrong.append(f"a request of {model} is answered with {status}: {answer[:200]!r}")


async def reload(port: int, ends: float, tally: Tally) -> None:
    """Load models anew, from files that have been written again."""
    while time.monotonic() < ends:
        await asyncio.sleep(RELOAD_SECONDS)
        name = random.choice(("first", "second"))
        status, _, answer = await request(port, f"/v2/repository/models/{name}/load", b"{}")
        tally.outcomes[f"load {status}"] += 1
        if status != 200:
            tally.wrong.append(f"{name} cannot be loaded again: {answer[:200]!r}")


async def kill(server: psutil.Process, ends: float, tally: Tally) -> None:
    """Kill a process of a model."""
    while time.monotonic() < ends:
        await asyncio.sleep(KILL_SECONDS)
        models = [each for each in family(server) if each.name().startswith(("first", "second"))]
        if models:
            with contextlib.suppress(psutil.NoSuchProcess):
                random.choice(models).kill()
                tally.outcomes["killed"] += 1


def family(server: psutil.Process) -> list[psutil.Process]:
    return [server, *server.children(recursive=True)]


def memory(server: psutil.Process) -> float:
    """MiB of all processes, what they share only once."""
    total = 0
    for each in family(server):
        with contextlib.suppress(psutil.Error):
            total += each.memory_full_info().pss
    return total / 2**20


async def watch(server: psutil.Process, ends: float, samples: list[float]) -> None:
    while time.monotonic() < ends:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(memory(server))
        say(f"{samples[-1]:8.1f} MiB")


def free_port() -> int:
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


async def soak(port: int, server: psutil.Process, minutes: float, clients: int) -> tuple[Tally, list[float]]:
    tally, samples = Tally(), []
    ends = time.monotonic() + minutes * 60
    await asyncio.gather(
        *(client(port, number, ends, tally) for number in range(clients)),
        reload(port, ends, tally),
        kill(server, ends, tally),
        watch(server, ends, samples),
    )
    return tally, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="soak-"))
    make_repository(scratch / "models")
    port = free_port()
    command = [str(Path(sys.executable).with_name("octavo")), "serve", "--model-repository", str(scratch / "models")]
    log = (scratch / "log").open("wb")
    process = subprocess.Popen(
        [*command, "--model-control-mode", "explicit", "--load-model", "*", "--port", str(port)],
        stdout=log,
        stderr=log,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    server = psutil.Process(process.pid)
    try:
        wait(port, process, scratch / "log")
        tally, samples = asyncio.run(soak(port, server, options.minutes, options.clients))
        there = family(server)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    left = [f"process {each.pid}" for each in there if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    left += [str(each) for each in scratch.iterdir() if each.name not in ("models", "log")]
    steady = samples[int(len(samples) * WARM_UP) :]
    half = len(steady) // 2
    growth = np.mean(steady[half:]) / np.mean(steady[:half]) - 1 if half else 0.0
    say(dict(sorted(tally.outcomes.items())))
    say(f"memory: {growth:+.1%} from the first half to the second; wrong: {len(tally.wrong)}; left: {left}")
    for each in tally.wrong[:20]:
        say(each)
    shutil.rmtree(scratch, ignore_errors=True)
    return bool(tally.wrong or left or growth > MOST_GROWTH)


def wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the models are ready."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /v2/models/both/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if b" 200 " in connection.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit(log.read_text(errors="replace")[-2000:])


if __name__ == "__main__":
    sys.exit(main())
