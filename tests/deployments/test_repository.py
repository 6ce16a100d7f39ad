"""Model repositories while a server runs: what is served, what is not and why, loading, unloading and polling."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from octavo.hosting.triton.model_config import config_to_json, read_config
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model

ALL_VERSIONS = SCALE + "version_policy { all {} }"


@dataclass
class Server:
    """A server, with its URL for HTTP and its address for gRPC, and what it has said."""

    url: str
    grpc: str
    said: list[str]


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Server]:
    """`octavo serve` of a repository, once it has loaded what it can."""
    command = [sys.executable, "-m", "octavo", "serve", "--model-repository", str(repository), *flags, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"ready on (http://\S+) and (\S+) \(gRPC\)", line):
                break
        else:
            pytest.fail("".join(said))
        reading = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reading.start()
        try:
            yield Server(found[1], found[2], said)
        finally:
            process.terminate()
            process.wait(60)
            reading.join()


def free_port() -> int:
    """One that the system gives nobody who asks for any: it is still free when a server has started."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("there is no free port")


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    write_model(root, "versions", ALL_VERSIONS, v1=onnx_scale(1), v2=onnx_scale(2), v10=onnx_scale(10))
    write_model(root, "auto", 'metric_tags { key: "team" value: "red" }', v1=onnx_scale(3))
    write_model(root, "broken", "max_batch_sise: 3", v1=onnx_scale())
    write_model(root, "wrong", SCALE.replace("dims: 3", "dims: 4"), v1=onnx_scale())
    write_model(root, "changing", SCALE, v1=onnx_scale(1))
    write_model(root, "sent", SCALE, v1=onnx_scale(1))
    write_model(root, "step", SCALE, v1=onnx_scale(30))
    for name, steps in {
        "chain": ("versions", "auto"),
        "pair": ("versions", "step"),
        "a": ("b", "auto"),
        "b": ("a", "auto"),
        "lame": ("wrong", "auto"),
    }.items():
        write_ensemble(root, name, *steps)
    write_ensemble(root, "large", "changing", size=16)
    write_ensemble(root, "larger", "large")
    labelled = ' label_filename: "labels.txt"'
    model = write_model(root, "labelled", SCALE.replace('"y"', f'"y"{labelled}'), v1=onnx_scale())
    (model / "labels.txt").write_text("cat\ndog\n")
    write_ensemble(root, "inherits", "labelled")
    (write_ensemble(root, "names", "labelled", labels=labelled) / "labels.txt").write_text("red\n\nblue\n")
    write_ensemble(root, "nameless", "labelled", labels=labelled)
    return root


def write_ensemble(root: Path, name: str, *steps: str, labels: str = "", size: int = 4) -> Path:
    """Models one after the other."""
    tensors = ["x", *(f"between_{number}" for number in range(len(steps) - 1)), "y"]
    written = "".join(
        f'step {{ model_name: "{step}" model_version: -1 input_map {{ key: "x" value: "{taken}" }} '
        f'output_map {{ key: "y" value: "{given}" }} }}\n'
        for step, taken, given in zip(steps, tensors, tensors[1:], strict=False)
    )
    config = SCALE.replace('backend: "onnxruntime"', 'platform: "ensemble"').replace("_size: 8", f"_size: {size}")
    config = config.replace('"y"', f'"y"{labels}')
    folder = write_model(root, name, f"{config}ensemble_scheduling {{ {written} }}")
    (folder / "1").mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*", "--api-workers", "2")
    with serving(repository, *flags) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def factor(url: str, model: str, version: str = "") -> tuple[float, str]:
    """What a model multiplies by, and the version that says so."""
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}
    answer = httpx.post(f"{url}{path}/infer", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"][0], answer.json()["model_version"]


def files_of_clients() -> set[Path]:
    """Folders with files that clients have sent, of all servers."""
    places = (Path(tempfile.gettempdir()), *Path(tempfile.gettempdir()).glob("octavo-run-*"))
    return {each for place in places for each in place.glob("octavo-model-*")}


def index(url: str) -> dict[tuple[str, str], tuple[str, str]]:
    found = httpx.post(f"{url}/v2/repository/index").json()
    return {(each["name"], each.get("version", "")): (each.get("state", ""), each.get("reason", "")) for each in found}


# --- what is served ---------------------------------------------------------------------------------------------------


def test_every_version_answers_and_the_highest_without_one(server: Server) -> None:
    assert factor(server.url, "versions") == (10.0, "10")
    for version in ("1", "2", "10"):
        assert factor(server.url, "versions", version) == (float(version), version)
    missing = httpx.get(f"{server.url}/v2/models/versions/versions/7")
    assert missing.status_code == 404
    assert missing.json() == {"error": "Request for unknown model: 'versions' version 7 is not found"}


def test_versions_have_statistics_metrics_and_metadata_of_their_own(
    server: Server, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    factor(server.url, "versions", "2")
    assert http.get_model_metadata("versions")["versions"] == ["1", "2", "10"]
    assert list(grpc.get_model_metadata("versions").versions) == ["1", "2", "10"]
    stats = http.get_inference_statistics("versions")["model_stats"]
    assert [each["version"] for each in stats] == ["1", "2", "10"]
    assert [each.version for each in grpc.get_inference_statistics("versions").model_stats] == ["1", "2", "10"]
    only = http.get_inference_statistics("versions", "2")["model_stats"]
    assert [each["version"] for each in only] == ["2"]
    metrics = httpx.get(f"{server.url}/metrics").text
    for version in ("1", "2", "10"):
        assert f'nv_inference_request_success{{model="versions",version="{version}"}}' in metrics


def test_a_broken_model_says_why_and_the_others_are_served(server: Server) -> None:
    found = index(server.url)
    for version in ("1", "2", "10"):
        assert found["versions", version] == ("READY", "")
    state, why = found["broken", ""]
    assert state == "UNAVAILABLE"
    assert "broken/config.pbtxt, line 1: max_batch_sise: there is no such field" in why
    state, why = found["wrong", "1"]
    assert state == "UNAVAILABLE"
    assert "the model expects 2 dimensions (shape [-1,3])" in why
    answer = httpx.post(f"{server.url}/v2/models/wrong/infer", json={"inputs": []})
    assert answer.status_code == 404
    assert "'wrong' has no available versions: model 'wrong', tensor 'x'" in answer.json()["error"]
    assert httpx.get(f"{server.url}/v2/models/wrong/ready").status_code == 400
    for name, words in {
        "large": "ensemble large allows maximum batch size 16, but it contains model changing which only allows",
        "larger": "ensemble 'larger' depends on 'large' which has no loaded version",
    }.items():
        assert words in found[name, ""][1]
        assert any(f"model {name} cannot be loaded" in line and words in line for line in server.said)
        assert not any(f"model {name} version 1 is served" in line for line in server.said)


def test_the_server_is_not_ready_while_a_model_is_broken(
    server: Server, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    assert http.is_server_live()
    assert not http.is_server_ready()
    assert not grpc.is_server_ready()
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")


def test_the_configuration_is_the_complete_one(http: triton_http.InferenceServerClient) -> None:
    config = http.get_model_config("auto")
    assert (config["max_batch_size"], config["backend"]) == (4, "onnxruntime")
    assert config["input"][0]["dims"] == [3]


def test_metrics_have_the_tags_of_the_configuration(server: Server) -> None:
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'nv_inference_request_success{model="auto",team="red",version="1"}' in metrics


def test_ensembles_are_served(server: Server, http: triton_http.InferenceServerClient) -> None:
    assert factor(server.url, "chain") == (30.0, "1")
    config = http.get_model_config("chain")
    assert (config["platform"], config["ensemble_scheduling"]["step"][0]["model_name"]) == ("ensemble", "versions")
    found = index(server.url)
    assert found["chain", "1"] == ("READY", "")
    assert "ensemble 'lame' depends on 'wrong' which has no loaded version" in found["lame", ""][1]
    assert any("circular dependency between ensembles" in found[name, ""][1] for name in "ab")


def test_classes_of_ensembles_have_labels(
    server: Server, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    """Their own, or else those of the model that gives the output."""
    labels = {"labelled": ["", "dog", "cat"], "inherits": ["", "dog", "cat"], "names": ["blue", "", "red"]}
    for name, expected in labels.items():
        for kind, client in ((triton_http, http), (triton_grpc, grpc)):
            x = kind.InferInput("x", [1, 3], "FP32")
            x.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
            wanted = kind.InferRequestedOutput("y", class_count=3)
            [classes] = client.infer(name, [x], outputs=[wanted]).as_numpy("y").tolist()
            assert [each.decode().split(":")[2:] for each in classes] == [[each] if each else [] for each in expected]
    state, why = index(server.url)["nameless", ""]
    assert state == "UNAVAILABLE"
    assert "cannot read the labels of output 'y'" in why


# --- control ----------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_loaded_with_the_models_that_it_lacks(
    server: Server, grpc: triton_grpc.InferenceServerClient
) -> None:
    assert factor(server.url, "pair") == (300.0, "1")
    grpc.unload_model("step")
    eventually(lambda: index(server.url)["step", "1"] == ("UNAVAILABLE", "unloaded"))
    assert "depends on 'step' which has no loaded version" in index(server.url)["pair", "1"][1]
    grpc.load_model("pair")  # which is unchanged
    assert factor(server.url, "pair") == (300.0, "1")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_models_are_unloaded_and_loaded(protocol: str, server: Server, request: pytest.FixtureRequest) -> None:
    client: Any = request.getfixturevalue(protocol)
    client.unload_model("auto")
    eventually(lambda: not client.is_model_ready("auto"))
    assert index(server.url)["auto", "1"] == ("UNAVAILABLE", "unloaded")
    client.load_model("auto")
    assert client.is_model_ready("auto")
    assert factor(server.url, "auto") == (3.0, "1")
    assert index(server.url)["auto", "1"] == ("READY", "")


def test_unloading_an_ensemble_with_what_came_with_it(server: Server, http: triton_http.InferenceServerClient) -> None:
    http.unload_model("chain")
    assert factor(server.url, "auto") == (3.0, "1")
    http.load_model("chain")
    http.unload_model("chain", unload_dependents=True)
    assert factor(server.url, "auto") == (3.0, "1"), "somebody has named it"
    http.unload_model("auto")
    http.load_model("chain")
    assert factor(server.url, "chain") == (30.0, "1")
    http.unload_model("chain", unload_dependents=True)
    assert index(server.url)["auto", "1"] == ("UNAVAILABLE", "unloaded")
    http.load_model("auto")
    http.load_model("chain")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_model_that_is_not_there_is_not_loaded(protocol: str, request: pytest.FixtureRequest) -> None:
    client: Any = request.getfixturevalue(protocol)
    with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll from model repository"):
        client.load_model("nope")
    client.unload_model("nope")


@pytest.mark.parametrize("name", ["..", ".", "../versions", "versions/1", "", " ", "a" * 300, "a\nb", "\0", "é" * 200])
def test_what_is_no_name_of_a_model_is_not_loaded_and_leaves_no_trace(name: str, server: Server) -> None:
    before = index(server.url)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match=r"[Mm]odel name") as refused:
            client.load_model(name)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert index(server.url) == before
        assert len(client.get_model_repository_index().models) == len(before)
    answer = httpx.post(f"{server.url}/v2/repository/models/{quote(name, safe='')}/load", timeout=60)
    assert answer.status_code in (400, 404), "there is no such model, or no such route"
    assert index(server.url) == before


def test_a_change_is_loaded_and_no_request_is_lost_meanwhile(
    server: Server, repository: Path, http: triton_http.InferenceServerClient
) -> None:
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            seen.append(factor(server.url, "changing"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in (2, 3):
            write_model(repository, "changing", SCALE, v1=onnx_scale(number))
            http.load_model("changing")
            assert factor(server.url, "changing") == (float(number), "1")
        write_model(repository, "changing", v2=onnx_scale(7))
        http.load_model("changing")
        assert factor(server.url, "changing") == (7.0, "2")
    finally:
        stop.set()
        asking.join()
    assert {each for each, _ in seen} <= {1.0, 2.0, 3.0, 7.0}
    assert [each for each, _ in seen] == sorted(each for each, _ in seen)
    found = index(server.url)
    assert ("changing", "1") not in found
    assert found["changing", "2"] == ("READY", "")


def test_what_is_served_stays_if_its_successor_cannot_be_loaded(
    server: Server, repository: Path, http: triton_http.InferenceServerClient
) -> None:
    before = factor(server.url, "sent")
    folder = write_model(repository, "sent", v1=b"no model at all")
    with pytest.raises(InferenceServerException, match="load failed for model 'sent': version 1 is at UNAVAILABLE"):
        http.load_model("sent")
    (folder / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(InferenceServerException, match="line 1: max_batch_size: couldn't parse"):
        http.load_model("sent")
    assert factor(server.url, "sent") == before
    assert index(server.url)["sent", "1"] == ("READY", "")
    write_model(repository, "sent", SCALE, v1=onnx_scale(1))
    http.load_model("sent")


def test_configurations_and_files_of_clients(
    server: Server, repository: Path, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    config = config_to_json(read_config(SCALE + 'name: "sent"', "test"))
    config["max_batch_size"] = 2
    http.load_model("sent", config=json.dumps(config))
    assert http.get_model_config("sent")["max_batch_size"] == 2
    for number, client in ((21, http), (22, grpc)):
        client.load_model("sent", config=json.dumps(config), files={"file:4/model.onnx": onnx_scale(number)})
        assert factor(server.url, "sent") == (float(number), "4")
    http.load_model("sent")
    assert factor(server.url, "sent") == (1.0, "1"), "without files it is the repository's again"
    assert http.get_model_config("sent")["max_batch_size"] == 8
    fresh = {**config, "name": "fresh"}
    http.load_model("fresh", config=json.dumps(fresh), files={"file:1/model.onnx": onnx_scale(5)})
    assert factor(server.url, "fresh") == (5.0, "1")
    http.unload_model("fresh")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"config": 3}, "Config parameter 'config' must have string type"),
        ({"config": "{"}, "the config of the request is no JSON"),
        ({"config": '{"max_batch_sise": 3}'}, "max_batch_sise: there is no such field"),
        ({"file:1/model.onnx": "AAAA"}, "Load parameter 'config' must be specified for model file override"),
        ({"config": "{}", "file:1/model.onnx": "?"}, "must have bytes type for its value"),
        ({"config": "{}", "file:../x": "AAAA"}, "must stay within model directory"),
        ({"config": "{}", "file:": "AAAA"}, "must stay within model directory"),
        ({"other": 1}, "Unrecognized load parameter 'other'"),
        (3, "Unable to parse 'parameters'"),
    ],
)
def test_what_clients_may_not_load(server: Server, parameters: object, message: str) -> None:
    before = factor(server.url, "sent")
    answer = httpx.post(f"{server.url}/v2/repository/models/sent/load", json={"parameters": parameters})
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert factor(server.url, "sent") == before


def test_files_of_clients_are_removed_when_they_are_used_no_more(server: Server, tmp_path: Path) -> None:
    config = json.dumps(config_to_json(read_config(SCALE, "test")))
    data = base64.b64encode(b"no model").decode()
    before = files_of_clients()
    parameters = {"config": config, "file:1/model.onnx": data}
    answer = httpx.post(f"{server.url}/v2/repository/models/none/load", json={"parameters": parameters})
    assert answer.status_code == 400
    eventually(lambda: files_of_clients() <= before)


# --- the other modes --------------------------------------------------------------------------------------------------


def test_polling_follows_the_folders(tmp_path: Path) -> None:
    write_model(tmp_path, "first", SCALE, v1=onnx_scale(1))
    write_model(tmp_path, "broken", "max_batch_sise: 3", v1=onnx_scale())
    flags = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1", "--strict-readiness=false")
    with serving(tmp_path, *flags) as server:
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        refused = httpx.post(f"{server.url}/v2/repository/models/first/load")
        assert refused.status_code == 503
        assert refused.json()["error"] == "explicit model load / unload is not allowed if polling is enabled"
        write_model(tmp_path, "second", SCALE, v1=onnx_scale(2))
        eventually(lambda: index(server.url).get(("second", "1")) == ("READY", ""))
        write_model(tmp_path, "first", v1=onnx_scale(9))
        eventually(lambda: factor(server.url, "first") == (9.0, "1"))
        (tmp_path / "first" / "config.pbtxt").write_text("nonsense")
        time.sleep(1.0)
        assert factor(server.url, "first") == (9.0, "1")
        failures = [line for line in server.said if "model first cannot be loaded" in line]
        assert len(failures) == 1, "it is not tried again before something changes"
        shutil.rmtree(tmp_path / "second")
        eventually(lambda: ("second", "1") not in index(server.url))


def test_a_server_whose_models_cannot_all_be_loaded_may_end(tmp_path: Path) -> None:
    from tests.cli.command import octavo_process

    write_model(tmp_path, "broken", "max_batch_sise: 3", v1=onnx_scale())
    result = octavo_process("serve", "--model-repository", str(tmp_path), "--exit-on-error=true", "--port", "0")
    assert result.returncode == 1
    assert "failed to load all models: broken: " in result.stderr
    assert "max_batch_sise" in result.stderr


def test_explicit_mode_begins_with_nothing(tmp_path: Path) -> None:
    before = files_of_clients()
    write_model(tmp_path, "scale", SCALE, v1=onnx_scale(4))
    write_model(tmp_path, "other", SCALE, v1=onnx_scale(4))
    write_ensemble(tmp_path, "chain", "other", "other")
    with serving(tmp_path, "--model-control-mode", "explicit") as server:
        assert index(server.url) == {(name, ""): ("", "") for name in ("scale", "other", "chain")}
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            with ThreadPoolExecutor() as pool:
                loading = pool.submit(httpx.post, f"{server.url}/v2/repository/models/chain/load", timeout=60)
                eventually(lambda: not client.is_server_ready())
                eventually(client.is_server_ready)
                assert client.is_model_ready("chain"), "it waits for more than the steps"
            assert loading.result().status_code == 200
            client.load_model("scale")
            given = triton_http.InferInput("x", [1, 3], "FP32")
            given.set_data_from_numpy(np.ones((1, 3), np.float32))
            assert client.infer("scale", [given]).as_numpy("y")[0, 0] == 4
            config = json.dumps(config_to_json(read_config(SCALE, "test")))
            client.load_model("scale", config=config, files={"file:1/model.onnx": onnx_scale(5)})
            assert client.infer("scale", [given]).as_numpy("y")[0, 0] == 5
            assert files_of_clients() - before
    assert files_of_clients() <= before


def test_a_server_is_not_ready_before_its_models_are(tmp_path: Path) -> None:
    """Not even where it may be without some of them, and a frontend may not have heard yet that there are any."""
    may_go_on = tmp_path / "go on"
    code = f"""
import os, time

class TritonPythonModel:
    def initialize(self, args):
        while not os.path.exists({str(may_go_on)!r}):
            time.sleep(0.01)

    def execute(self, requests):
        return []
"""
    config = SCALE.replace("onnxruntime", "python")
    folder = write_model(tmp_path / "models", "late", config)
    (folder / "1").mkdir()
    (folder / "1" / "model.py").write_text(code)
    port = free_port()
    ports = ("--port", str(port), "--grpc-port", "0", "--metrics-port", "0")
    flags = ("--model-repository", str(tmp_path / "models"), *ports, "--strict-readiness=false")
    url, answers = f"http://127.0.0.1:{port}", []
    with subprocess.Popen([sys.executable, "-m", "octavo", "serve", *flags], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            there: set[tuple[str, str]] = set()
            while ("late", "1") not in there and time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    there = set(index(url))
                    answers.append((httpx.get(f"{url}/v2/health/ready").status_code, httpx.get(f"{url}/ready").json()))
            assert answers
            assert {status for status, _ in answers} == {400}
            assert {body["status"] for _, body in answers} == {"loading"}
            may_go_on.touch()
            eventually(lambda: httpx.get(f"{url}/v2/health/ready").status_code == 200)
        finally:
            process.terminate()
