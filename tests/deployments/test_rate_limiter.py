"""Instances that wait for resources, in a whole server: whose turn it is, and what becomes of what a process had."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import Server, eventually, index, serving
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model

CODE = """
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            self.count += 1
            began = time.monotonic_ns()
            path = pb_utils.get_input_tensor_by_name(request, "PATH").as_numpy().flat[0].decode()
            if path:
                open(f"{path}.begun", "w").close()
                while not os.path.exists(path):
                    time.sleep(0.002)
            values = np.array([began, time.monotonic_ns(), os.getpid(), self.count], np.int64)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", values)]))
        return answers
"""
ASKS = CODE.replace(
    "            values =",
    """            given = [pb_utils.get_input_tensor_by_name(request, "PATH")]
            asked = pb_utils.InferenceRequest(model_name="one", requested_output_names=["SEEN"], inputs=given).exec()
            if asked.has_error():
                answers.append(pb_utils.InferenceResponse([], asked.error()))
                continue
            values =""",
)
FORKS = """
import multiprocessing, os, subprocess, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        helper = subprocess.Popen(["sleep", "600"])
        helper.terminate()
        helper.wait(30)
        self.child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
        self.child.start()
        self.helper = subprocess.Popen(["sleep", "600"])

    def execute(self, requests):
        values = np.array([self.child.pid, self.helper.pid, os.getpid(), 0], np.int64)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", values)]) for _ in requests]
"""
CONFIG = """
backend: "python"
input { name: "PATH" data_type: TYPE_STRING dims: 1 }
output { name: "SEEN" data_type: TYPE_INT64 dims: 4 }
"""
QUEUE = "dynamic_batching { default_queue_policy { allow_timeout_override: true } }\n"
SEQUENCES = "sequence_batching { max_sequence_idle_microseconds: 60000000 }\n"


def group(*resources: str, count: int = 1, priority: int = 0) -> str:
    """An instance group whose instances need one of each resource, "NAME" or "NAME:COUNT"."""
    written = []
    for each in resources:
        name, _, needed = each.partition(":")
        shared = "global: true" if name.startswith("ALL") else ""
        written.append(f'resources {{ name: "{name}" count: {needed or 1} {shared} }}')
    limiter = f"rate_limiter {{ {' '.join(written)} priority: {priority} }}"
    return f"instance_group {{ kind: KIND_CPU count: {count} {limiter} }}\n"


MODELS = {
    "one": (CODE, QUEUE + group("R")),
    "other": (CODE, QUEUE + group("R")),
    "free": (CODE, ""),
    "elsewhere": (CODE, group("S")),
    "urgent": (CODE, group("P")),
    "patient": (CODE, group("P", priority=3)),
    "pair": (CODE, group("PAIR", count=2)),
    "steps": (CODE, SEQUENCES + group("R")),
    "asks": (ASKS, group("R")),
    "forks": (FORKS, group("R")),
    "greedy": (CODE, group("R:9")),
    "shared": (CODE, group("ALL_R")),
    "unknown": (CODE, group("UNKNOWN")),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    for name, (code, config) in MODELS.items():
        version = root / name / "1"
        version.mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(CONFIG + config)
        (version / "model.py").write_text(code)
    write_model(root, "file", SCALE + group("R", count=2), v1=onnx_scale(2))
    given = ("R:1", "S:1", "P:1", "PAIR:1", "ALL_R:1:3")
    flags = [flag for each in given for flag in ("--rate-limit-resource", each)]
    with serving(root, "--rate-limit=execution_count", *flags) as started:
        yield started


class Clients:
    """Ask at the same time. Attributes: paths: of what models wait for."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._pool = ThreadPoolExecutor(16)
        self.paths: list[Path] = []

    def begin(self, model: str, path: Path | str = "", **more: Any) -> "Future[list[int]]":
        """When a request was begun and ended, in which process, and how many that has computed."""
        return self._pool.submit(self.ask, model, path, **more)

    def post(self, model: str, tensor: dict[str, Any]) -> "Future[httpx.Response]":
        """What comes of a tensor."""
        url = f"{self._server.url}/v2/models/{model}/infer"
        return self._pool.submit(lambda: httpx.post(url, json={"inputs": [tensor]}, timeout=60))

    def ask(self, model: str, path: Path | str = "", **more: Any) -> list[int]:
        with triton_grpc.InferenceServerClient(self._server.grpc) as client:
            given = triton_grpc.InferInput("PATH", [1], "BYTES")
            given.set_data_from_numpy(np.array([str(path).encode()], object))
            found: list[int] = client.infer(model, [given], **more).as_numpy("SEEN").tolist()
            return found

    def hold(self, model: str) -> "tuple[Path, Future[list[int]]]":
        """Have a model compute until the path is written to."""
        path = self._folder / f"{model} {len(self.paths)}"
        self.paths.append(path)
        held = self.begin(model, path)
        eventually(Path(f"{path}.begun").exists)
        return path, held

    def close(self) -> None:
        for each in self.paths:
            each.touch()
        self._pool.shutdown()


@pytest.fixture
def clients(server: Server, tmp_path: Path) -> Iterator[Clients]:
    found = Clients(server, tmp_path)
    yield found
    found.close()


def pending(server: Server, model: str) -> int:
    """Requests of a model that wait, or are computed."""
    prefix = f'nv_inference_pending_request_count{{model="{model}"'
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(prefix))


def test_who_needs_the_same_waits_and_nobody_else(server: Server, clients: Clients) -> None:
    path, held = clients.hold("one")
    second = clients.begin("other")
    file = [clients.post("file", {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}) for _ in "1234"]
    sequence = clients.begin("steps", sequence_id=7, sequence_start=True, sequence_end=True)
    eventually(lambda: all(pending(server, each) for each in ("one", "other", "file", "steps")))
    for _ in range(3):
        clients.ask("free")
        clients.ask("elsewhere")
    assert not any(each.done() for each in (held, second, sequence, *file))
    path.touch()
    assert all(each.result(60).json()["outputs"][0]["data"] == [2, 4, 6] for each in file)
    turns = sorted(each.result(60)[:2] for each in (held, second, sequence))
    assert all(before[1] <= after[0] for before, after in pairwise(turns))


def test_instances_of_one_model_wait_for_each_other(clients: Clients) -> None:
    path, held = clients.hold("pair")
    others = [clients.begin("pair") for _ in range(6)]
    clients.ask("free")
    path.touch()
    turns = sorted(each.result(60)[:2] for each in (held, *others))
    assert all(before[1] <= after[0] for before, after in pairwise(turns))
    assert len({each.result()[2] for each in others}) == 2


def test_a_process_that_dies_gives_back_what_it_has(clients: Clients) -> None:
    pid = clients.ask("one")[2]
    _, held = clients.hold("one")
    second = clients.begin("other")
    os.kill(pid, signal.SIGKILL)
    assert second.result(60)
    with pytest.raises(InferenceServerException, match="the model failed: "):
        held.result(60)
    eventually(lambda: _answers(lambda: clients.ask("one")))
    assert clients.ask("one")[2] != pid


def test_what_a_model_has_started_neither_holds_anything_for_it_nor_outlives_it(clients: Clients) -> None:
    child, helper, pid, _ = clients.ask("forks")
    assert lives(child)
    assert lives(helper)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _answers(lambda: clients.ask("forks")) and clients.ask("forks")[2] != pid)
    clients.ask("one")
    eventually(lambda: not lives(child) and not lives(helper))


def lives(pid: int) -> bool:
    """Whether a process has not ended, whoever is to take note of that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except InferenceServerException:
        return False
    return True


def test_whoever_waits_for_resources_may_lose_patience(clients: Clients) -> None:
    before = clients.ask("other")[3]
    path, held = clients.hold("one")
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match="Request timeout expired"):
        clients.ask("other", timeout=200_000)
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        clients.ask("other", client_timeout=0.2)
    assert 0.4 < time.monotonic() - began < 20
    path.touch()
    held.result(60)
    assert clients.ask("other")[3] == before + 1  # nothing was computed for those who left


def test_priorities_divide_the_turns(server: Server, clients: Clients) -> None:
    """Of priority 3 there is one turn for three of priority 1, as long as both have something to compute."""
    path, held = clients.hold("urgent")
    asked = {name: [clients.begin(name) for _ in range(7)] for name in ("urgent", "patient")}
    eventually(lambda: pending(server, "urgent") + pending(server, "patient") == 15)
    path.touch()
    held.result(60)
    turns = sorted((each.result(60)[0], name) for name, each in ((n, e) for n, some in asked.items() for e in some))
    first = [name for _, name in turns][:8]
    assert 5 <= first.count("urgent") <= 7


def test_models_that_ask_others_for_what_they_hold_themselves_are_told_so(clients: Clients) -> None:
    """Triton waits for ever."""
    with pytest.raises(InferenceServerException) as refused:
        clients.ask("asks")
    assert "the model 'one' cannot compute this request: it needs 1 of the resource \"R\"" in str(refused.value)
    assert "of which there are 1, and 1 are with models that wait for it; --rate-limit-resource R:2" in str(
        refused.value
    )
    clients.ask("one")


def test_models_that_could_never_compute_are_refused(server: Server) -> None:
    found = {name: reason for (name, _), (_, reason) in index(server.url).items()}
    assert 'Resource count for "R" is limited to 1 ' in found["greedy"]
    assert "the minimum required count is 9 on device 0: --rate-limit-resource R:9 makes it so" in found["greedy"]
    assert 'Resource count for "UNKNOWN" is limited to 0 ' in found["unknown"]
    assert found["shared"] == ""  # it is of all devices, whichever is named
    limiter = httpx.get(f"{server.url}/v2/models/patient/config").json()["instance_group"][0]["rate_limiter"]
    assert limiter == {"resources": [{"name": "P", "global": False, "count": 1}], "priority": 3}
