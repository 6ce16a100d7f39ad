"""Answers that are kept, in a whole server: two frontends, models that come and go, and processes that die."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.deployments.test_repository import Server, index, serving

CODE = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            self.count += 1
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            tensors = [pb_utils.Tensor("OUT", given * FACTOR)]
            for name, value in (("COUNT", self.count), ("PID", os.getpid())):
                tensors.append(pb_utils.Tensor(name, np.full((len(given), 1), value, np.int32)))
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
"""

TENSORS = """
max_batch_size: 4
input { name: "IN" data_type: TYPE_INT32 dims: -1 }
output [ { name: "OUT" data_type: TYPE_INT32 dims: -1 }, { name: "COUNT" data_type: TYPE_INT32 dims: 1 },
         { name: "PID" data_type: TYPE_INT32 dims: 1 } ]
"""
CACHED = "response_cache { enable: true }\n"
PYTHON = f'backend: "python"\n{TENSORS}'

STREAMS = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_model_transaction_policy({"decoupled": True})
        return config

    def execute(self, requests):
        raise NotImplementedError
"""


def write(root: Path, name: str, config: str, code: str = "") -> None:
    version = root / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)
    if code:
        (version / "model.py").write_text(code)


def ensemble(model: str, config: str = "") -> str:
    maps = " ".join(f'output_map {{ key: "{each}" value: "{each}" }}' for each in ("OUT", "COUNT", "PID"))
    step = f'model_name: "{model}" model_version: -1 input_map {{ key: "IN" value: "IN" }} {maps}'
    return f'platform: "ensemble"\n{TENSORS}{config}ensemble_scheduling {{ step {{ {step} }} }}\n'


def code(factor: int) -> str:
    return CODE.replace("FACTOR", str(factor))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    write(root, "cached", PYTHON + CACHED + "dynamic_batching { }", code(1))
    write(root, "counted", PYTHON + CACHED, code(1))
    write(root, "dying", PYTHON + CACHED, code(1))
    write(root, "plain", PYTHON, code(1))
    write(root, "changing", PYTHON + CACHED, code(1))
    write(root, "whole", ensemble("plain", CACHED))
    write(root, "steps", ensemble("cached"))
    write(root, "sequences", PYTHON + CACHED + "sequence_batching { }", code(1))
    write(root, "streaming", PYTHON + CACHED + "model_transaction_policy { decoupled: true }", code(1))
    write(root, "streams", PYTHON, STREAMS)
    write(root, "streams_after_all", PYTHON + CACHED, STREAMS)
    write(root, "streams_inside", ensemble("streams", CACHED))
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*", "--api-workers", "2")
    with serving(repository, *flags, "--cache-config=local,size=65536") as started:
        yield started


@contextmanager
def clients(server: Server) -> Iterator[list[tuple[Any, Any]]]:
    """One of each protocol on a connection of its own, which either frontend may take, and its module."""
    http = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
    grpc = triton_grpc.InferenceServerClient(server.grpc)
    yield [(http, triton_http), (grpc, triton_grpc)]
    http.close()
    grpc.close()


def ask(server: Server, model: str, *values: int) -> list[tuple[int, int, int]]:
    """What clients of both protocols get: the first value, how many requests were computed, and in which process."""
    found = []
    with clients(server) as both:
        for client, module in both:
            given = module.InferInput("IN", [1, len(values)], "INT32")
            given.set_data_from_numpy(np.array([values], np.int32))
            answer = client.infer(model, [given])
            out, count, pid = (int(answer.as_numpy(each).flat[0]) for each in ("OUT", "COUNT", "PID"))
            found.append((out, count, pid))
    return found


def load(server: Server, model: str) -> None:
    answer = httpx.post(f"{server.url}/v2/repository/models/{model}/load")
    assert answer.status_code == 200, answer.text


def test_all_frontends_and_protocols_give_the_answer_that_one_has_kept(server: Server) -> None:
    answers = {answer for _ in range(8) for answer in ask(server, "cached", 7)}
    assert len(answers) == 1
    assert len({count for _ in range(2) for _, count, _ in ask(server, "plain", 7)}) == 4  # each is computed
    gauges = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line)
    assert float(gauges["nv_cache_num_hits"]) >= 15  # of whichever frontend
    assert float(gauges["nv_cache_num_entries"]) >= 1
    assert float(gauges["nv_cache_num_lookups"]) == float(gauges["nv_cache_num_hits"]) + float(
        gauges["nv_cache_num_misses"]
    )


def test_all_frontends_count_together(server: Server) -> None:
    """Whichever is asked says what all have seen."""

    def seen() -> tuple[dict[str, int], dict[str, int]]:
        """By statistics over both protocols, which say the same, and by metrics."""
        with clients(server) as [(http, _), (grpc, _)]:
            [one] = http.get_inference_statistics("counted")["model_stats"]
            [other] = grpc.get_inference_statistics("counted", as_json=True)["model_stats"]
        counts = {name: each["count"] for name, each in one["inference_stats"].items()}
        assert counts == {name: int(each.get("count", 0)) for name, each in other["inference_stats"].items()}
        counts |= {"inferences": one["inference_count"], "batches": one["batch_stats"][0]["compute_infer"]["count"]}
        metrics = {}
        for line in httpx.get(f"{server.url}/metrics").text.splitlines():
            if line.startswith("nv_") and 'model="counted"' in line:
                metrics[line.partition("{")[0]] = int(float(line.rpartition(" ")[2]))
        return counts, metrics

    ask(server, "counted", 0)
    (counts, metrics), asked = seen(), 0
    for number in range(5):
        for _ in range(3):
            asked += len(ask(server, "counted", number))
    for _ in range(4):  # on connections that either frontend may take
        counts_now, metrics_now = seen()
        grown = {name: counts_now[name] - counts[name] for name in counts}
        assert (grown["success"], grown["cache_hit"], grown["cache_miss"]) == (asked, asked - 4, 4)
        assert (grown["compute_infer"], grown["inferences"], grown["batches"]) == (4, 4, 4)
        for name, count in (
            ("nv_inference_request_success", asked),
            ("nv_inference_count", 4),
            ("nv_cache_num_hits_per_model", asked - 4),
            ("nv_cache_num_misses_per_model", 4),
        ):
            assert metrics_now[name] - metrics[name] == count
    text = httpx.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text"}).text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 20
    assert text.endswith("# EOF\n")


def test_what_is_known_does_not_wake_the_models_process(server: Server) -> None:
    [(_, _, pid), _] = first = ask(server, "cached", 8)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert ask(server, "cached", 8) == first
        assert ask(server, "steps", 8) == first  # nor for an ensemble that is not cached itself
    finally:
        os.kill(pid, signal.SIGCONT)


def test_another_model_in_the_same_version_has_answers_of_its_own(server: Server, repository: Path) -> None:
    """Triton goes on with the answers of the one before."""
    assert [out for out, _, _ in ask(server, "changing", 9)] == [9, 9]
    write(repository, "changing", PYTHON + CACHED, code(2))
    load(server, "changing")
    assert [out for out, _, _ in ask(server, "changing", 9)] == [18, 18]
    write(repository, "changing", PYTHON + CACHED, code(1))  # as it was at first
    load(server, "changing")
    [(out, count, _), _] = ask(server, "changing", 9)
    assert (out, count) == (9, 1)


def test_a_process_that_takes_anothers_place_answers_for_itself(server: Server) -> None:
    [(_, _, pid), _] = ask(server, "dying", 1)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(
            f"{server.url}/v2/models/dying/infer",
            json={"inputs": [{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [1]}]},
            timeout=60,
        ).json()
        outputs = {each["name"]: each["data"][0] for each in answer["outputs"]}
        if outputs["PID"] != pid:
            return
        assert time.monotonic() < deadline


def test_ensembles_keep_answers_as_long_as_their_models_are_the_same(server: Server, repository: Path) -> None:
    first = ask(server, "whole", 10)
    assert first[0] == first[1]
    assert ask(server, "whole", 10) == first
    write(repository, "plain", PYTHON, code(3))
    load(server, "plain")
    assert [out for out, _, _ in ask(server, "whole", 10)] == [30, 30]


def test_what_was_not_used_for_longest_goes_first(server: Server) -> None:
    [(_, kept, _), _] = ask(server, "cached", 1000)
    [(_, gone, _), _] = ask(server, "cached", 1001)
    with httpx.Client(base_url=server.url) as client:
        for number in range(200):  # the memory has 126 records
            for value in (number, 1000):
                body = {"inputs": [{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [value]}]}
                assert client.post("/v2/models/cached/infer", json=body).status_code == 200
    assert [count for _, count, _ in ask(server, "cached", 1000)] == [kept, kept]
    assert ask(server, "cached", 1001)[0][1] > gone


def test_models_that_cannot_have_a_cache_say_so(server: Server) -> None:
    found = {name: reason for (name, _), (_, reason) in index(server.url).items()}
    for name in ("sequences", "streaming", "streams_after_all"):
        assert f"Response Cache does not currently support model {name} with" in found[name]
    answer = httpx.get(f"{server.url}/v2/models/streams_inside")
    assert "Response Cache does not currently support model streams_inside with 'decoupled'" in answer.text
    assert httpx.get(f"{server.url}/v2/models/cached/config").json()["response_cache"] == {"enable": True}
    assert "response_cache" not in httpx.get(f"{server.url}/v2/models/plain/config").json()
