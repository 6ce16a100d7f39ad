"""Another number of instances while a server runs: the model goes on, and so do its requests and its sequences."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import Server, eventually, factor, serving
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model

WHO = """
import os, time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path({!r})

class TritonPythonModel:
    def initialize(self, args):
        (HERE / "initialized").open("a").write(args["model_instance_name"] + "\\n")
        if (HERE / "broken").exists():
            raise ValueError("there is no room for another one")

    def execute(self, requests):
        answers = []
        for request in requests:
            if pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0]:
                (HERE / ("computes " + str(os.getpid()))).touch()
                while not (HERE / "go on").exists():
                    time.sleep(0.005)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([os.getpid()], np.int32))]))
        return answers

    def finalize(self):
        (HERE / ("finalized " + str(os.getpid()))).touch()
"""

ADDS = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            value, start, end, name = (
                pb_utils.get_input_tensor_by_name(request, each).as_numpy().flat[0]
                for each in ("x", "START", "END", "CORRID")
            )
            self.sums[name] = (0 if start else self.sums[name]) + value
            said = np.array([[self.sums[name], os.getpid()]], np.int32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", said)]))
        return answers
"""

ONE = """
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: -1 }
"""

SEQUENCES = """
max_batch_size: 8
sequence_batching { oldest { max_candidate_sequences: 64 } max_sequence_idle_microseconds: 60000000 control_input [
  { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
  { name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }] },
  { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }] }
"""


def written(repository: Path, name: str, instances: int) -> None:
    """A model's configuration with so many instances."""
    config = {
        "who": f'backend: "python" {ONE}',
        "adds": f'backend: "python" {ONE} {SEQUENCES}',
        "scale": SCALE,
        "states": SCALE.replace("max_batch_size: 8", "max_batch_size: 1") + STATES,
    }[name]
    (repository / name / "config.pbtxt").write_text(f"{config}\ninstance_group {{ count: {instances} kind: KIND_CPU }}")


STATES = """
sequence_batching { direct { } max_sequence_idle_microseconds: 60000000
  state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 3
    initial_state { name: "zero" data_type: TYPE_FP32 dims: 3 zero_data: true } } }
"""


def onnx_sums() -> bytes:
    """y = t = x + s."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Add", ["x", "s"], ["y"]), helper.make_node("Add", ["x", "s"], ["t"])]
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xsyt"}
    graph = helper.make_graph(nodes, "sums", [tensors["x"], tensors["s"]], [tensors["y"], tensors["t"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `who` says of itself, and is told."""
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, notes: Path) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name, code in (("who", WHO.format(str(notes))), ("adds", ADDS)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(code)
    write_model(root, "scale", v1=onnx_scale(2))
    write_model(root, "states", v1=onnx_sums())
    for name in ("who", "adds", "scale", "states"):
        written(root, name, 1)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*", "--api-workers", "2")
    with serving(repository, *flags) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=16) as client:
        yield client


def resize(http: triton_http.InferenceServerClient, repository: Path, name: str, instances: int) -> None:
    written(repository, name, instances)
    http.load_model(name)
    assert http.get_model_config(name)["instance_group"][0]["count"] == instances


def who(server: Server, waits: int = 0) -> int:
    """The process that has computed a request."""
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [waits]}]}
    answer = httpx.post(f"{server.url}/v2/models/who/infer", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["outputs"][0]["data"][0])


def all_of(server: Server) -> set[int]:
    """The processes that compute what comes now, of either frontend."""
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(who, [server] * 64))


def lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_processes_come_and_go_and_what_they_have_begun_is_ended(
    server: Server, repository: Path, notes: Path, http: triton_http.InferenceServerClient
) -> None:
    [first] = all_of(server)
    before = http.get_inference_statistics("who")["model_stats"][0]["execution_count"]
    resize(http, repository, "who", 3)
    eventually(lambda: len(all_of(server)) == 3)
    assert first in all_of(server)
    assert sorted((notes / "initialized").read_text().split()) == ["who_0_0", "who_0_1", "who_0_2"]
    assert http.get_inference_statistics("who")["model_stats"][0]["execution_count"] > before, "it is the same model"
    with ThreadPoolExecutor(13) as pool:
        waiting = [pool.submit(who, server, 1) for _ in range(12)]  # either frontend has those that have least to do
        eventually(lambda: len(list(notes.glob("computes *"))) == 3)
        resize(http, repository, "who", 1)
        later = pool.submit(who, server)
        (notes / "go on").touch()
        computed = {each.result(60) for each in waiting}
        assert len(computed) == 3
        assert later.result(60) == first
    for pid in computed - {first}:
        eventually(lambda pid=pid: not lives(pid))  # type: ignore[misc]
        assert (notes / f"finalized {pid}").exists()
    assert all_of(server) == {first}
    assert not any("restarting" in line for line in server.said)


def test_an_instance_that_cannot_be_started_changes_nothing(
    server: Server, repository: Path, notes: Path, http: triton_http.InferenceServerClient
) -> None:
    [first] = all_of(server)
    (notes / "broken").touch()
    written(repository, "who", 2)
    with pytest.raises(InferenceServerException, match="there is no room for another one"):
        http.load_model("who")
    assert all_of(server) == {first}
    (notes / "broken").unlink()


class Sequence:
    """One of `adds`."""

    def __init__(self, http: triton_http.InferenceServerClient, number: int) -> None:
        self._http, self.number, self.sum = http, number, 0

    def send(self, *, start: bool = False, end: bool = False) -> int:
        """Add its number. Returns the process."""
        given = triton_http.InferInput("x", [1, 1], "INT32")
        given.set_data_from_numpy(np.array([[self.number]], np.int32))
        options: dict[str, Any] = {"sequence_id": self.number, "sequence_start": start, "sequence_end": end}
        self.sum = self.number if start else self.sum + self.number
        total, pid = self._http.infer("adds", [given], **options).as_numpy("y")[0]
        assert total == self.sum
        return int(pid)


def test_sequences_go_on_where_they_are_and_new_ones_are_everywhere(
    server: Server, repository: Path, http: triton_http.InferenceServerClient
) -> None:
    def begin(*numbers: int) -> tuple[dict[int, Sequence], dict[int, int]]:
        made = {number: Sequence(http, number) for number in numbers}
        return made, {number: each.send(start=True) for number, each in made.items()}

    def go_on(sequences: dict[int, Sequence], where: dict[int, int], *, end: bool = False) -> None:
        assert {number: each.send(end=end) for number, each in sequences.items()} == where

    old, at_first = begin(*range(1, 25))
    assert len(set(at_first.values())) == 1
    resize(http, repository, "adds", 3)
    go_on(old, at_first)
    more, then = begin(*range(25, 57))
    assert len(set(then.values())) == 3
    again, where = begin(1, 2)
    assert set(where.values()) == set(at_first.values()), "what is begun anew is where it was"
    old |= again
    resize(http, repository, "adds", 2)
    go_on(old, at_first)
    go_on(more, then)
    resize(http, repository, "adds", 4)
    go_on(old, at_first, end=True)
    go_on(more, then, end=True)
    assert len(set(begin(*range(100, 140))[1].values())) == 4
    leaving = set(then.values()) - {each.send() for each in begin(*range(200, 240))[0].values()}
    for pid in leaving:
        eventually(lambda pid=pid: not lives(pid))  # type: ignore[misc]
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        Sequence(http, 7).send()


def test_threads_come_and_go(server: Server, repository: Path, http: triton_http.InferenceServerClient) -> None:
    stop, failures = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            if factor(server.url, "scale") != (2.0, "1"):
                failures.append("another factor")

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for each in asking:
        each.start()
    before = http.get_inference_statistics("scale")["model_stats"][0]["execution_count"]
    try:
        for instances in (4, 1, 3):
            resize(http, repository, "scale", instances)
            time.sleep(0.05)
    finally:
        stop.set()
        for each in asking:
            each.join()
    assert not failures
    assert http.get_inference_statistics("scale")["model_stats"][0]["execution_count"] > before
    said = [line for line in server.said if "model scale version 1" in line]
    assert ["goes on with other instances" in line for line in said] == [False, True, True, True]


def test_states_of_sequences_stay_with_their_threads(
    server: Server, repository: Path, http: triton_http.InferenceServerClient
) -> None:
    def send(sequence: int, *, start: bool = False, end: bool = False) -> float:
        parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        inputs = [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]
        body = {"inputs": inputs, "parameters": parameters}
        answer = httpx.post(f"{server.url}/v2/models/states/infer", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return float(answer.json()["outputs"][0]["data"][0])

    assert send(1, start=True) == 1
    resize(http, repository, "states", 3)
    assert [send(1), send(2, start=True), send(3, start=True), send(2)] == [2, 1, 1, 2]
    resize(http, repository, "states", 1)
    assert [send(1), send(2), send(3)] == [3, 3, 2]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, 4, start=True)  # there is a slot when all but one have ended
        assert [send(1, end=True), send(3, end=True)] == [4, 3]
        assert send(2, end=True) == 4
        assert waiting.result(60) == 1
    assert send(4, end=True) == 2


def test_whatever_else_has_changed_is_loaded_anew(
    server: Server, repository: Path, http: triton_http.InferenceServerClient
) -> None:
    resize(http, repository, "who", 1)
    [first] = all_of(server)
    config = repository / "who" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2") + 'metric_tags { key: "a" value: "b" }')
    http.load_model("who")
    eventually(lambda: first not in all_of(server))
