"""Requests of all kinds that servers fall over, asked of models of a Triton repository and of somebody's own, over HTTP
and gRPC: what cannot be is refused, what nobody waits for is not computed, and all of it is counted.
"""

import gzip
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.deployments.hard_models import OWN, write_models
from tests.deployments.test_repository import Server, eventually, index, serving

GATED = ("gate", "gates", "own_gate")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository, app = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("own") / "app.py"
    write_models(repository)
    app.write_text(OWN)
    with serving(repository, str(app), "--max-queue-size=4", "--allow-client-shm") as started:
        yield started


@pytest.fixture(scope="module")
def web(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def infer(web: httpx.Client, model: str, *inputs: Any, **more: Any) -> httpx.Response:
    return web.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **more})


def counts(web: httpx.Client, model: str) -> tuple[int, int]:
    """Requests that succeeded, and that failed."""
    stats = web.get(f"/v2/models/{model}/stats").json()["model_stats"][0]["inference_stats"]
    return stats["success"]["count"], stats["fail"]["count"]


def failures(web: httpx.Client, model: str, reason: str) -> float:
    """Those of a reason, as Prometheus reads them."""
    line = rf'nv_inference_request_failure\{{model="{model}",reason="{reason}",version="1"\}} (\S+)'
    found = re.search(line, web.get("/metrics").text)
    assert found is not None
    return float(found[1])


# --- what is sent -----------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("model", ["number", "own_number", "gates"])
def test_input_that_is_nested_too_deep(web: httpx.Client, model: str) -> None:
    whole = json.dumps({"inputs": [tensor("x", "FP32", [1, 1], "DATA")], "parameters": {"a": "MORE"}})
    bodies = {
        f"/v2/models/{model}/infer": (whole.replace('"DATA"', DEEP), whole.replace('"MORE"', DEEP)),
        f"/v2/models/{model}/generate": (f'{{"x":{DEEP}}}', f'{{"x":1,"parameters":{{"a":{DEEP}}}}}'),
        f"/v1/models/{model}/predict": (f'{{"x":{DEEP}}}', DEEP),
        f"/v1/models/{model}:predict": (f'{{"instances":{DEEP}}}', f'{{"inputs":{{"x":{DEEP}}}}}'),
    }
    for path, contents in bodies.items():
        for content in contents:
            answer = web.post(path, content=content)
            assert answer.status_code == 400, path
            assert answer.json()["error"]


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**62, 4], [2**63 - 1, 2], [2**32, 2**32]])
def test_shapes_that_overflow(web: httpx.Client, grpc: triton_grpc.InferenceServerClient, shape: list[int]) -> None:
    for model, datatype in (("number", "FP32"), ("texts", "BYTES"), ("own_number", "FP32"), ("small", "UINT8")):
        plain = {"name": "x", "datatype": datatype, "shape": shape}
        for more in (
            {"data": [1]},
            {"parameters": {"binary_data_size": 4}},
            {"parameters": {"binary_data_size": 0}},
            {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}},
        ):
            assert infer(web, model, plain | more).status_code in (400, 404)
        given = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
        for raw in ([b"1234"], [b""], []):
            request = service_pb2.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=raw)
            with pytest.raises(Exception, match="INVALID_ARGUMENT"):
                grpc._client_stub.ModelInfer(request, timeout=30)


@pytest.mark.parametrize("model", ["small", "own_small"])
@pytest.mark.parametrize("value", [300, -1, 1.0, 2**70, "1", None, True])
def test_values_that_are_none_of_the_type_s(web: httpx.Client, model: str, value: Any) -> None:
    shape = [1, 1] if model == "small" else [1]
    answer = infer(web, model, tensor("x", "UINT8", shape, [value]))
    assert answer.status_code == 400
    assert "Unable to parse 'data'" in answer.json()["error"]


@pytest.mark.parametrize("model", ["small", "own_small"])
def test_values_that_do_not_fit_over_grpc(grpc: triton_grpc.InferenceServerClient, model: str) -> None:
    shape = [1, 1] if model == "small" else [1]
    given = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=shape)
    given.contents.uint_contents.append(300)
    with pytest.raises(Exception, match="values that do not fit UINT8"):
        grpc._client_stub.ModelInfer(service_pb2.ModelInferRequest(model_name=model, inputs=[given]), timeout=30)


@pytest.mark.parametrize("model", ["number", "texts", "own_number"])
def test_bodies_that_are_empty_or_only_claim_to_be_packed(web: httpx.Client, model: str) -> None:
    path = f"/v2/models/{model}/infer"
    body = json.dumps({"inputs": []}).encode()
    packed = gzip.compress(body)
    for content, encoding in (
        (b"", "identity"),
        (b"", "gzip"),
        (gzip.compress(b""), "gzip"),
        (body, "gzip"),
        (body, "deflate"),
        (packed[:-5], "gzip"),
        (packed[:-8] + bytes(8), "gzip"),
    ):
        answer = web.post(path, content=content, headers={"content-encoding": encoding})
        assert answer.status_code == 400
        assert answer.json()["error"]


@pytest.mark.parametrize("model", ["number", "own_number"])
def test_numbers_and_bytes_that_json_does_not_have(web: httpx.Client, model: str) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    head = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    written = json.dumps({"inputs": [head]}).encode()
    headers = {"inference-header-content-length": str(len(written))}
    answer = web.post(f"/v2/models/{model}/infer", content=written + array.tobytes(), headers=headers)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    data = json.loads(answer.content, parse_constant=refuse)["outputs"][0]["data"]
    assert data == ["NaN", "Infinity", "-Infinity", 1.5]
    assert infer(web, model, tensor("x", "FP32", [1, 4], data)).json()["outputs"][0]["data"] == data
    binary = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 6}}
    written = json.dumps({"inputs": [binary]}).encode()
    headers = {"inference-header-content-length": str(len(written))}
    answer = web.post("/v2/models/texts/infer", content=written + b"\2\0\0\0\xff\xfe", headers=headers)
    assert answer.status_code == 400
    assert "output 'y' has bytes that are no text in UTF-8" in answer.json()["error"]


def test_inputs_that_are_missing_or_unknown(web: httpx.Client, grpc: triton_grpc.InferenceServerClient) -> None:
    one = tensor("NEEDED", "INT32", [1], [1])
    optional, unknown = one | {"name": "MORE"}, one | {"name": "OTHER"}
    for inputs, message in (
        ([optional], "missing required input(s) ['NEEDED']"),
        ([], "missing required input(s) ['NEEDED']"),
        ([one, unknown], "unexpected inference input 'OTHER'"),
        ([optional, unknown], "unexpected inference input 'OTHER'"),
    ):
        answer = infer(web, "optional", *inputs)
        assert answer.status_code == 400
        assert message in answer.json()["error"]
        given = []
        for each in inputs:
            given.append(triton_grpc.InferInput(each["name"], [1], "INT32"))
            given[-1].set_data_from_numpy(np.ones(1, np.int32))
        with pytest.raises(InferenceServerException, match=re.escape(message)) as caught:
            grpc.infer("optional", given)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert infer(web, "optional", one).json()["outputs"][0]["data"] == ["NEEDED"]


def test_generate_wants_one_answer(web: httpx.Client) -> None:
    for model, body, status in (
        ("repeat", {"IN": 0}, 400),
        ("repeat", {"IN": 1}, 200),
        ("repeat", {"IN": 2}, 400),
        ("says_upper", {"WORDS": "one three"}, 400),
        ("says_upper", {"WORDS": "one"}, 200),
    ):
        answer = web.post(f"/v2/models/{model}/generate", json=body)
        assert answer.status_code == status
        assert status == 200 or "exactly 1 response" in answer.json()["error"]


def test_settings_that_there_are_not(web: httpx.Client, grpc: triton_grpc.InferenceServerClient) -> None:
    for path in ("/v2/trace/setting", "/v2/models/number/trace/setting", "/v2/logging"):
        answer = web.post(path, json={"nonsense": "3"})
        assert answer.status_code == 400
        assert "nonsense" in answer.json()["error"]
    for set_, value in ((grpc.update_trace_settings, "3"), (grpc.update_log_settings, True)):
        with pytest.raises(InferenceServerException, match="nonsense") as caught:
            set_(settings={"nonsense": value})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_errors_say_where_they_are_from(
    server: Server, web: httpx.Client, grpc: triton_grpc.InferenceServerClient
) -> None:
    state, why = index(server.url)["broken", ""]
    assert state == "UNAVAILABLE"
    assert "broken/config.pbtxt, line 1: max_batch_sise: there is no such field" in why
    answer = web.post("/v2/models/says_upper/generate", json={"WORDS": "two"})
    words = "in ensemble 'says_upper', step 1 of model 'upper': not two"
    assert answer.json() == {"error": words}
    given = triton_grpc.InferInput("WORDS", [1], "BYTES").set_data_from_numpy(np.array([b"two"], object))
    came: Queue[Any] = Queue()
    grpc.start_stream(lambda result, error: came.put(error or result))
    try:
        grpc.async_stream_infer("says_upper", [given])
        assert str(came.get(timeout=30).message()) == words
    finally:
        grpc.stop_stream()


@pytest.mark.parametrize("sequence", ["a text", "ä" * 60, 7])
def test_texts_as_ids_of_sequences(
    web: httpx.Client, grpc: triton_grpc.InferenceServerClient, sequence: str | int
) -> None:
    for flags in ({"sequence_start": True}, {"sequence_end": True}):
        parameters = {"sequence_id": sequence, **flags}
        answer = infer(web, "told", tensor("x", "INT32", [1, 1], [1]), parameters=parameters)
        assert answer.json()["outputs"][0]["data"] == [str(sequence)]
        x = triton_grpc.InferInput("x", [1, 1], "INT32").set_data_from_numpy(np.ones((1, 1), np.int32))
        found = grpc.infer("told", [x], sequence_id=f"{sequence} over gRPC", **flags)
        assert found.as_numpy("told").item().decode() == f"{sequence} over gRPC"


# --- how it is sent ---------------------------------------------------------------------------------------------------


def post(model: str, number: int, fields: str = "", chunks: int = 0) -> bytes:
    """A request whose answer has its number."""
    shape = [1, 1] if model == "number" else [1]
    body = json.dumps({"id": str(number), "inputs": [tensor("x", "FP32", shape, [number])]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: localhost\r\n{fields}"
    if not chunks:
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[at : at + chunks] for at in range(0, len(body), chunks)]
    written = b"".join(b"%x;x=y\r\n%b\r\n" % (len(each), each) for each in pieces)
    return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + written + b"0\r\nlater: field\r\n\r\n"


@pytest.mark.parametrize("model", ["number", "own_number"])
def test_requests_one_after_the_other_on_one_connection(server: Server, model: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    requests = [
        post(model, 1),
        post(model, 2, chunks=7),
        post(model, 3, "expect: 100-continue\r\n"),
        post(model, 4, "expect: 100-continue\r\n", chunks=1),
        post(model, 5).replace(b'"FP32"', b'"FP23"'),
        post(model, 6, chunks=1000),
    ]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"HTTP/1.1 200") + answers.count(b"HTTP/1.1 400") < 6 or b'"id":"6"' not in answers:
            answers += connection.recv(65536)
    assert re.findall(rb'"id":"(\d)"', answers) == [b"1", b"2", b"3", b"4", b"6"]
    assert answers.count(b"HTTP/1.1 100 Continue") == 2
    assert answers.count(b"invalid datatype") == 1


# --- what waits -------------------------------------------------------------------------------------------------------


class Gate:
    """What a request waits at, once it is computed, until it is opened."""

    def __init__(self, path: Path, *, is_open: bool = False) -> None:
        self.path = str(path)
        if is_open:
            self.open()

    def open(self) -> None:
        Path(self.path).touch()

    @property
    def begun(self) -> bool:
        return os.path.exists(f"{self.path}.begun")


class Connection:
    """A request at a gate, on a connection of its own."""

    def __init__(self, server: Server, model: str, gate: Gate, **parameters: Any) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        body: dict[str, Any] = {"inputs": [tensor("gate", "BYTES", [1, 1], [gate.path])]}
        data = json.dumps(body | {"parameters": parameters}).encode()
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        self._socket.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        self.sent = time.monotonic()

    def leave(self) -> None:
        self._socket.close()

    def answer(self) -> tuple[int, str, float]:
        """The status, the body, and the seconds until it came."""
        with self._socket.makefile("rb") as file:
            status = int(file.readline().split()[1])
            seconds = time.monotonic() - self.sent
            return status, file.read().partition(b"\r\n\r\n")[2].decode(), seconds


def gate_input(gate: Gate) -> triton_grpc.InferInput:
    given = triton_grpc.InferInput("gate", [1, 1], "BYTES")
    return given.set_data_from_numpy(np.array([[gate.path.encode()]], object))


def asked_by_http(server: Server, model: str, gate: Gate) -> Callable[[], object]:
    asked = [Connection(server, model, gate) for _ in range(3)]
    return lambda: [each.leave() for each in asked]


def asked_by_grpc(server: Server, model: str, gate: Gate) -> Callable[[], object]:
    client = triton_grpc.InferenceServerClient(server.grpc)
    asked = [client.async_infer(model, [gate_input(gate)], callback=lambda *_: None) for _ in range(3)]
    return lambda: ([each.cancel() for each in asked], client.close())


def asked_by_stream(server: Server, model: str, gate: Gate) -> Callable[[], object]:
    client = triton_grpc.InferenceServerClient(server.grpc)
    client.start_stream(lambda result, error: None)
    for _ in range(3):
        client.async_stream_infer(model, [gate_input(gate)])
    return lambda: (client.stop_stream(cancel_requests=True), client.close())


def pending(web: httpx.Client, model: str) -> int:
    found = re.search(
        rf'nv_inference_pending_request_count\{{model="{model}",version="1"\}} (\S+)', web.get("/metrics").text
    )
    assert found is not None
    return int(float(found[1]))


def begun(server: Server, web: httpx.Client, model: str) -> int:
    """How many requests the model has begun that had a gate."""
    name = "own_gate" if model == "own_gate" else "gate"
    output = infer(web, name, tensor("gate", "BYTES", [1, 1], [""])).json()["outputs"][0]
    return int(output["data"][0])


@pytest.mark.parametrize("ask", [asked_by_http, asked_by_grpc, asked_by_stream])
@pytest.mark.parametrize("model", GATED)
def test_what_waits_when_its_client_leaves_is_not_computed(
    server: Server, web: httpx.Client, tmp_path: Path, model: str, ask: Callable[..., Callable[[], object]]
) -> None:
    name = "own_gate" if model == "own_gate" else "gate"
    before, failed = begun(server, web, model), counts(web, model)[1]
    canceled = failures(web, model, "CANCELED")
    gate, opened = Gate(tmp_path / "busy"), Gate(tmp_path / "open", is_open=True)
    busy = Connection(server, name, gate)
    eventually(lambda: gate.begun)
    leave = ask(server, model, opened)
    eventually(lambda: pending(web, model) >= (3 if model == "gates" else 4))
    leave()
    eventually(lambda: failures(web, model, "CANCELED") == canceled + 3)
    gate.open()
    assert busy.answer()[0] == 200
    assert begun(server, web, model) == before + 1
    assert not opened.begun
    assert counts(web, model)[1] == failed + 3


def test_what_is_computed_when_its_client_leaves_is_told(server: Server, web: httpx.Client, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "never")
    left = Connection(server, "gates", gate)
    eventually(lambda: gate.begun)
    left.leave()
    output = infer(web, "gate", tensor("gate", "BYTES", [1, 1], [""])).json()["outputs"][0]["data"]
    assert output[1] >= 1


@pytest.mark.parametrize("model", ["gate", "own_gate"])
def test_each_waits_for_as_long_as_it_says(server: Server, web: httpx.Client, tmp_path: Path, model: str) -> None:
    """And whoever may wait longer is computed, though a neighbour is refused."""
    before, rejected = counts(web, model), failures(web, model, "REJECTED")
    gate, opened = Gate(tmp_path / "busy"), Gate(tmp_path / "open", is_open=True)
    busy = Connection(server, model, gate)
    eventually(lambda: gate.begun)
    limits = (200_000, 50_000_000, 500_000, 40_000_000)
    waiting = [Connection(server, model, opened, timeout=limit) for limit in limits]
    answers: dict[int, tuple[int, str, float]] = {}
    threads = [
        threading.Thread(target=lambda at=at, each=each: answers.update({at: each.answer()}))
        for at, each in enumerate(waiting)
    ]
    for each in threads:
        each.start()
    eventually(lambda: len(answers) == 2)
    assert answers.keys() == {0, 2}
    gate.open()
    for each in threads:
        each.join()
    assert [answers[at][0] for at in range(4)] == [503, 200, 503, 200]
    for at in (0, 2):
        assert "Request timeout expired" in answers[at][1]
        assert limits[at] / 1e6 - 0.05 < answers[at][2] < limits[at] / 1e6 + 2  # machines are busy
    assert answers[0][2] < answers[2][2]
    assert busy.answer()[0] == 200
    after = counts(web, model)
    assert (after[0] - before[0], after[1] - before[1]) == (3, 2)
    assert failures(web, model, "REJECTED") == rejected + 2


@pytest.mark.parametrize("model", ["gate", "own_gate"])
def test_a_full_queue_is_counted(
    server: Server, web: httpx.Client, grpc: triton_grpc.InferenceServerClient, tmp_path: Path, model: str
) -> None:
    before, rejected = counts(web, model), failures(web, model, "REJECTED")
    gate, opened = Gate(tmp_path / "busy"), Gate(tmp_path / "open", is_open=True)
    busy = Connection(server, model, gate)
    eventually(lambda: gate.begun)
    waiting = [Connection(server, model, opened) for _ in range(4)]
    eventually(lambda: pending(web, model) == 5)
    for _ in range(2):
        answer = infer(web, model, tensor("gate", "BYTES", [1, 1], [opened.path]))
        assert answer.status_code == 503
        assert "Exceeds maximum queue size" in answer.json()["error"]
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as caught:
            grpc.infer(model, [gate_input(opened)])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    gate.open()
    assert [each.answer()[0] for each in (busy, *waiting)] == [200] * 5
    after = counts(web, model)
    assert (after[0] - before[0], after[1] - before[1]) == (5, 4)
    assert failures(web, model, "REJECTED") == rejected + 4


@pytest.mark.parametrize("model", ["errors", "own_failing"])
def test_errors_of_models_are_failures(web: httpx.Client, grpc: triton_grpc.InferenceServerClient, model: str) -> None:
    before, failed = counts(web, model), failures(web, model, "BACKEND")
    name, datatype, dtype = ("IN", "INT32", np.int32) if model == "errors" else ("x", "FP32", np.float32)
    for value in (1, 2):  # an error, and an exception
        assert infer(web, model, tensor(name, datatype, [1], [value])).status_code == 500
        given = triton_grpc.InferInput(name, [1], datatype).set_data_from_numpy(np.full(1, value, dtype))
        with pytest.raises(InferenceServerException) as caught:
            grpc.infer(model, [given])
        assert caught.value.status() == "StatusCode.INTERNAL"
    after = counts(web, model)
    assert (after[0] - before[0], after[1] - before[1]) == (0, 4)
    assert failures(web, model, "BACKEND") == failed + 4


@pytest.mark.parametrize("model", GATED)
def test_a_process_that_dies_is_started_again(web: httpx.Client, model: str) -> None:
    answer = infer(web, model, tensor("gate", "BYTES", [1, 1], ["die"]))
    assert answer.status_code == 500
    assert "the model failed" in answer.json()["error"]
    assert infer(web, model, tensor("gate", "BYTES", [1, 1], [""])).status_code == 200


def test_everything_is_served_still(server: Server, web: httpx.Client) -> None:
    states = {name: state for (name, _), (state, _) in index(server.url).items()}
    assert states.pop("broken") == "UNAVAILABLE"
    assert set(states.values()) == {"READY"}
    assert web.get("/health").status_code == 200
