"""Which requests a server traces, as its operator says and as clients change it; and what is in the files."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import Server, eventually, serving

DOUBLES = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        [request] = requests
        value = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if value[0] == 13:
            raise ValueError("it is thirteen")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * value)])]
"""

ASKS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        [request] = requests
        for name, trace in (("traced", request.trace()), ("alone", None)):
            asked = pb_utils.InferenceRequest(
                name, inputs=request.inputs(), requested_output_names=["y"], model_name="doubles", trace=trace
            )
            response = asked.exec()
        return [pb_utils.InferenceResponse(response.output_tensors())]
"""

REPEATS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender, value = request.get_response_sender(), pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            for number in range(value[0]):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", value + number)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

TENSORS = """
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: 1 }
"""

TWICE = """
platform: "ensemble"
ensemble_scheduling { step [
  { model_name: "doubles" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "z" } },
  { model_name: "doubles" model_version: -1 input_map { key: "x" value: "z" } output_map { key: "y" value: "y" } }
] }
"""

COMPUTED = ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]
MODEL = ["REQUEST_START", "QUEUE_START", *COMPUTED, "INFER_RESPONSE_COMPLETE", "REQUEST_END"]
HTTP = ["HTTP_RECV_START", "HTTP_RECV_END", *MODEL, "HTTP_SEND_START", "HTTP_SEND_END"]
GRPC = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *MODEL, "GRPC_SEND_START", "GRPC_SEND_END"]


@contextmanager
def traced(folder: Path, *flags: str) -> Iterator[tuple[Server, Path]]:
    """A server, and the file of its traces."""
    root = folder / "repository"
    for name, (code, more) in {
        "doubles": (DOUBLES, ""),
        "asks": (ASKS, ""),
        "repeats": (REPEATS, "model_transaction_policy { decoupled: true }"),
    }.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(code)
        (root / name / "config.pbtxt").write_text(f'backend: "python" {TENSORS} {more}')
    (root / "twice" / "1").mkdir(parents=True)
    (root / "twice" / "config.pbtxt").write_text(TENSORS + TWICE)
    file = folder / "trace.json"
    with serving(root, "--trace-config", f"triton,file={file}", *flags) as started:
        yield started, file


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    with traced(tmp_path_factory.mktemp("traced"), "--trace-config=rate=1", "--api-workers", "2") as found:
        yield found


@pytest.fixture
def server(started: tuple[Server, Path]) -> Iterator[Server]:
    yield started[0]
    for model in ("", "doubles"):
        change(started[0], dict.fromkeys(("trace_level", "trace_rate", "trace_count", "log_frequency")), model)


@pytest.fixture
def file(started: tuple[Server, Path]) -> Path:
    """What was written before this test is there no more."""
    for each in started[1].parent.glob("trace.json*"):
        each.unlink()
    return started[1]


@pytest.fixture
def http(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def grpc(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def ask(server: Server, model: str = "doubles", value: int = 1, **more: Any) -> httpx.Response:
    """On a connection of its own, which any frontend may have."""
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [value]}], **more}
    return httpx.post(f"{server.url}/v2/models/{model}/infer", json=body)


def change(server: Server, settings: dict[str, Any], model: str = "") -> dict[str, Any]:
    path = f"/v2/models/{model}/trace/setting" if model else "/v2/trace/setting"
    answer = httpx.post(f"{server.url}{path}", json=settings)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def read(file: Path, count: int) -> list[dict[str, Any]]:
    """The traces of a file by their numbers, once it has so many: heads, with times and tensors."""
    eventually(lambda: file.exists() and file.read_text().count('"model_name"') >= count)
    found: dict[int, dict[str, Any]] = {}
    for entry in json.loads(file.read_text()):
        trace = found.setdefault(entry["id"], {"times": {}, "tensors": []})
        if "timestamps" in entry:
            [stamp] = entry["timestamps"]
            trace["times"].setdefault(stamp["name"], stamp["ns"])
        elif "tensor" in entry:
            trace["tensors"].append((entry["activity"], entry["tensor"]))
        else:
            trace.update(entry)
    assert len(found) == count
    return [found[number] for number in sorted(found)]


def in_order(trace: dict[str, Any]) -> list[str]:
    """What happened, as it came."""
    times: dict[str, int] = trace["times"]
    assert list(times.values()) == sorted(times.values())
    return list(times)


# --- what is in a file ------------------------------------------------------------------------------------------------


def test_nothing_is_traced_before_somebody_says_so(server: Server, file: Path) -> None:
    assert ask(server).status_code == 200
    change(server, {"trace_level": ["TIMESTAMPS"]})
    assert ask(server, id="mine").status_code == 200
    [trace] = read(file, 1)
    assert (trace["model_name"], trace["model_version"], trace["request_id"]) == ("doubles", 1, "mine")
    assert in_order(trace) == HTTP
    assert not trace["tensors"]
    change(server, {"trace_level": ["OFF"]})
    assert ask(server).status_code == 200
    read(file, 1)


def test_steps_of_ensembles_and_what_models_ask_are_traced_with_them(server: Server, file: Path) -> None:
    change(server, {"trace_level": ["TENSORS", "TIMESTAMPS"]})
    assert ask(server, "twice", 3, id='a "b"').json()["outputs"][0]["data"] == [12]
    whole, first, second = read(file, 3)
    assert [each["model_name"] for each in (whole, first, second)] == ["twice", "doubles", "doubles"]
    assert {first["parent_id"], second["parent_id"]} == {whole["id"]}
    assert {each["request_id"] for each in (whole, first, second)} == {'a "b"'}
    assert in_order(whole) == [name for name in HTTP if name not in COMPUTED]
    assert in_order(first) == MODEL
    assert second["tensors"] == [
        ("TENSOR_QUEUE_INPUT", {"name": "x", "data": "6", "shape": "1", "dtype": "INT32"}),
        ("TENSOR_BACKEND_OUTPUT", {"name": "y", "data": "12", "shape": "1", "dtype": "INT32"}),
    ]
    assert whole["times"]["QUEUE_START"] < first["times"]["COMPUTE_END"] < second["times"]["COMPUTE_START"]
    assert ask(server, "asks", 3).json()["outputs"][0]["data"] == [6]
    *_, asks, doubles = read(file, 5)
    assert (asks["model_name"], doubles["model_name"], doubles["request_id"]) == ("asks", "doubles", "traced")
    assert doubles["parent_id"] == asks["id"], "and the request without a trace is not there"


def test_streams_grpc_and_what_fails_are_traced(
    server: Server, file: Path, grpc: triton_grpc.InferenceServerClient
) -> None:
    change(server, {"trace_level": ["TIMESTAMPS", "TENSORS"]})
    given = triton_grpc.InferInput("x", [1], "INT32")
    given.set_data_from_numpy(np.array([2], np.int32))
    grpc.infer("doubles", [given], request_id="one")
    [trace] = read(file, 1)
    assert (in_order(trace), trace["request_id"]) == (GRPC, "one")
    grpc.start_stream(lambda result, error: None)
    grpc.async_stream_infer("repeats", [given], request_id="many")
    grpc.stop_stream()
    _, trace = read(file, 2)
    assert set(in_order(trace)) == set(GRPC)
    assert [tensor["data"] for activity, tensor in trace["tensors"] if activity.endswith("OUTPUT")] == ["2", "3"]
    assert httpx.post(f"{server.url}/v2/models/repeats/generate_stream", json={"x": 2, "id": "here"}).text
    *_, trace = read(file, 3)
    assert (set(in_order(trace)), trace["request_id"]) == (set(HTTP), "here")
    assert ask(server, value=13).status_code == 500
    *_, trace = read(file, 4)
    assert in_order(trace) == HTTP


def test_files_are_complete_with_so_many_traces_and_counts_end(server: Server, file: Path) -> None:
    settings = change(server, {"trace_level": ["TIMESTAMPS"], "trace_count": "5", "log_frequency": "2"})
    assert settings["trace_count"] == "5"
    assert ask(server, inputs=[]).status_code == 400, "what no model gets is not traced, and counts for nothing"
    for _ in range(8):
        assert ask(server).status_code == 200
    eventually(lambda: len(list(file.parent.glob("trace.json.[0-9]*"))) == 3)
    names = sorted(file.parent.glob("trace.json.*"), key=lambda each: int(each.suffix[1:]))
    assert [len(read(each, count)) for each, count in zip(names, (2, 2, 1), strict=True)] == [2, 2, 1]
    assert change(server, {})["trace_count"] == "0"
    assert not file.exists()


def test_one_of_so_many_requests_is_traced(tmp_path: Path) -> None:
    with traced(tmp_path, "--trace-config", "rate=3", "--trace-config", "level=MIN") as (server, file):
        for _ in range(7):
            ask(server)
        read(file, 2)
        change(server, {"trace_count": "4"})
        for _ in range(3):
            ask(server)
    read(file, 3)
    assert [each.name for each in tmp_path.glob("trace.json*")] == ["trace.json"], "with the server it is complete"


# --- settings ---------------------------------------------------------------------------------------------------------

INITIAL = {
    "trace_level": ["OFF"],
    "trace_rate": "1",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def test_models_have_what_holds_for_all_but_for_what_was_set_for_them(
    started: tuple[Server, Path],
    http: triton_http.InferenceServerClient,
    grpc: triton_grpc.InferenceServerClient,
    file: Path,
) -> None:
    initial = INITIAL | {"trace_file": str(file)}
    assert http.get_trace_settings() == http.get_trace_settings("doubles") == initial
    own = http.update_trace_settings("doubles", {"trace_rate": "12", "log_frequency": "34"})
    assert own == initial | {"trace_rate": "12", "log_frequency": "34"}
    http.update_trace_settings(settings={"trace_rate": "56", "trace_count": "78", "trace_level": ["TENSORS"]})
    assert http.get_trace_settings("asks")["trace_rate"] == "56"
    assert http.get_trace_settings("doubles") == own | {"trace_count": "78", "trace_level": ["TENSORS"]}
    found = grpc.update_trace_settings(settings={"trace_rate": None, "trace_count": None}, as_json=True)["settings"]
    assert found["trace_rate"] == {"value": ["1"]}
    assert found["trace_level"] == {"value": ["TENSORS"]}
    assert http.get_trace_settings("doubles") == own | {"trace_level": ["TENSORS"]}
    cleared = http.update_trace_settings("doubles", {"trace_rate": None, "trace_level": None})
    assert cleared == initial | {"trace_level": ["TENSORS"], "log_frequency": "34"}
    grpc.update_trace_settings("doubles", {"log_frequency": None})
    everywhere = [httpx.get(f"{started[0].url}/v2/models/doubles/trace/setting").json() for _ in range(8)]
    assert everywhere == [http.get_trace_settings()] * 8


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"trace_rate": 5}, 400, "attempt to access JSON non-string as string: trace_rate is 5"),
        ({"trace_rate": "7x"}, 400, "Unable to parse 'trace_rate', got: 7x"),
        ({"trace_rate": "-3"}, 400, "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: -3"),
        ({"trace_count": "-2"}, 400, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ({"trace_count": str(2**31)}, 400, "value is out of range [ -1, 2147483647 ], got: 2147483648"),
        ({"log_frequency": "many"}, 400, "Unable to parse 'log_frequency', got: many"),
        ({"trace_level": "OFF"}, 400, "attempt to access JSON non-array as array: trace_level is 'OFF'"),
        ({"trace_level": [1]}, 400, "attempt to access JSON non-string as string: trace_level has 1"),
        ({"trace_level": ["ALL"]}, 400, "invalid trace setting 'trace_level': there is no level 'ALL'; give TIMEST"),
        (
            {"trace_level": []},
            400,
            "'trace_level': there is none; give TIMESTAMPS, TENSORS or OFF",
        ),
        ({"trace_level": ["OFF", "TENSORS"]}, 400, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ["TENSORS"], "trace_rate": "0"}, 400, "invalid trace setting :sample rate must be non-zero"),
        ({"trace_file": "/tmp/other"}, 501, "trace file location can not be updated through network protocol"),
        ({"trace_mode": "opentelemetry"}, 400, "Attempting to set invalid trace setting 'trace_mode'"),
        ({"trace_colour": "red"}, 400, "Attempting to set invalid trace setting 'trace_colour': give log_frequency"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_nothing_is_changed(
    server: Server, settings: dict[str, Any], status: int, message: str
) -> None:
    answer = httpx.post(f"{server.url}/v2/trace/setting", json={"log_frequency": "9", **settings})
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.json()
    assert httpx.get(f"{server.url}/v2/trace/setting").json()["log_frequency"] == "0"


def test_models_that_are_not_there_have_no_settings(server: Server, grpc: triton_grpc.InferenceServerClient) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{server.url}/v2/models/nothing/trace/setting")
        assert (answer.status_code, answer.json()) == (400, {"error": "Request for unknown model : nothing"})
    with pytest.raises(InferenceServerException, match="Request for unknown model : nothing"):
        grpc.get_trace_settings("nothing")
    with pytest.raises(InferenceServerException, match="expect only 1 value for 'trace_rate', and there are 2"):
        grpc.update_trace_settings(settings={"trace_rate": ["1", "2"]})


def test_without_a_file_nothing_can_be_traced_and_a_file_must_be_one(tmp_path: Path) -> None:
    from tests.cli.command import octavo_process

    (tmp_path / "repository").mkdir()
    command = ["serve", "--model-repository", str(tmp_path / "repository"), "--port", "0", "--trace-config"]
    result = octavo_process(*command, f"triton,file={tmp_path}/none/trace.json")
    assert result.returncode == 1
    assert f"traces cannot be written to {tmp_path}/none/trace.json: there is no folder {tmp_path}/none" in re.sub(
        r"\s+", " ", result.stderr
    )
    result = octavo_process(*command, "level=TIMESTAMPS")
    assert "trace_config: trace file name is not given; --trace-config triton,file=PATH says it" in result.stderr
