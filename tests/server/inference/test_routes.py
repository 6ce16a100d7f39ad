"""What else the protocol can be asked over HTTP, and how HTTP itself is kept to."""

import asyncio
import json
import logging
import re
from typing import Any

import httpx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from octavo.server.request_context import CLIENT_GONE
from octavo.server.settings import ServerSettings
from octavo.worker.control import WorkerState
from tests.server.conftest import eventually
from tests.server.fake import running
from tests.server.inference.conftest import _make
from tests.server.inference.fake import FakeClient
from tests.server.raw import connect, read_answer

Client = triton.InferenceServerClient
Models = dict[str, FakeClient]

BODY = {"inputs": [{"name": "IN", "shape": [1], "datatype": "FP32", "data": [1.5]}]}
INFER = "/v2/models/FP32/infer"


def test_the_server_and_its_models_describe_themselves(client: Client, models: Models) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "octavo"
    assert client.is_model_ready("pair")
    assert client.is_model_ready("pair", "1")
    assert not client.is_model_ready("pair", "2")
    assert not client.is_model_ready("nope")
    metadata = client.get_model_metadata("pair", "1")
    assert metadata["inputs"][1] == {"name": "IN2", "datatype": "INT64", "shape": [-1, -1]}
    assert client.get_model_config("pair")["max_batch_size"] == 4
    assert {each["name"] for each in client.get_model_repository_index()} == set(models)
    assert client.get_log_settings()["log_info"] is True
    assert client.get_trace_settings("pair")["trace_level"] == ["OFF"]


def test_statistics_count(client: Client, web: httpx.Client) -> None:
    def count() -> int:
        [found] = client.get_inference_statistics("FP32")["model_stats"]
        return int(found["inference_count"])

    before = count()
    assert web.post(INFER, json=BODY).status_code == 200
    assert count() == before + 1
    assert {each["name"] for each in client.get_inference_statistics()["model_stats"]} >= {"FP32", "pair"}


def test_metrics_have_tritons_names(web: httpx.Client) -> None:
    def value(name: str, labels: str) -> float:
        line = next(each for each in web.get("/metrics").text.splitlines() if each.startswith(f"{name}{{{labels}}}"))
        return float(line.rpartition(" ")[2])

    labels = 'model="INT8",version="1"'
    before = value("nv_inference_request_success", labels)
    body = {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT8", "data": [1]}]}
    assert web.post("/v2/models/INT8/infer", json=body).status_code == 200
    assert value("nv_inference_request_success", labels) == before + 1
    assert value("nv_inference_request_failure", 'model="INT8",reason="REJECTED",version="1"') == 0
    assert value("nv_inference_pending_request_count", labels) == 0
    handled = 'handler="/v2/models/{model_name}/infer",method="POST",status="200"'
    assert value("http_requests_total", handled) >= 1


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "body"),
    [
        ("GET", "/v2/models", None, 200, None),
        ("GET", "/v2/nope", None, 404, {"error": "Not Found"}),
        ("GET", "/v2/", None, 404, {"error": "Not Found"}),
        ("GET", "/v2/models/nope", None, 404, {"error": "Request for unknown model: 'nope' is not found"}),
        ("GET", INFER, None, 405, {"error": "Method Not Allowed"}),
        ("POST", "/v2", None, 405, {"error": "Method Not Allowed"}),
        ("GET", "/v2/models/nope/ready", None, 400, {"error": "Model version not ready"}),
        (
            "POST",
            "/v2/repository/index",
            b'{"ready":1}',
            400,
            {"error": "Invalid value for 'ready': expected a boolean"},
        ),
        (
            "POST",
            "/v2/repository/models/FP32/unload",
            b"{}",
            503,
            {"error": "explicit model load / unload is not allowed if polling is enabled"},
        ),
        (
            "POST",
            "/v2/systemsharedmemory/register",
            b"{}",
            400,
            {"error": "'region name' is necessary to register system shared memory region"},
        ),
        (
            "POST",
            "/v2/systemsharedmemory/region/r/register",
            b'{"key":"/x"}',
            400,
            {"error": "Shared memory register request has no 'byte_size' field"},
        ),
        (
            "POST",
            "/v2/cudasharedmemory/region/r/register",
            b"{}",
            501,
            {"error": "failed to register CUDA shared memory region: 'r', GPUs not supported"},
        ),
        ("POST", "/v2/logging", b'{"log_info":true}', 200, None),
        ("POST", "/v2/trace/setting", b'{"trace_level":null}', 200, None),
    ],
)
def test_answers(
    web: httpx.Client, method: str, path: str, content: bytes | None, status: int, body: dict[str, str] | None
) -> None:
    answer = web.request(method, path, content=content)
    assert answer.status_code == status
    assert body is None or answer.json() == body


def test_a_part_of_a_program_logs_and_traces_as_the_program_does(web: httpx.Client) -> None:
    answer = web.post("/v2/logging", json={"log_verbose_level": 2})
    assert answer.status_code == 501
    assert "the server does not support dynamic logging" in answer.json()["error"]
    answer = web.post("/v2/trace/setting", json={"trace_rate": "5"})
    assert answer.status_code == 501
    assert "the server does not support trace" in answer.json()["error"]


def test_methods(web: httpx.Client) -> None:
    assert web.get(INFER).headers["allow"] == "OPTIONS, POST"
    assert web.options("/v2").headers["allow"] == "GET, HEAD, OPTIONS"
    head = web.head("/v2/models/FP32")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(web.get("/v2/models/FP32").content)


def test_chunked_bodies_and_bodies_without_a_type(web: httpx.Client) -> None:
    data = json.dumps(BODY).encode()
    answer = web.post(INFER, content=(data[at : at + 7] for at in range(0, len(data), 7)))
    assert answer.json()["outputs"][0]["data"] == [1.5]
    assert "content-type" not in answer.request.headers


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def test_requests_that_follow_each_other_are_answered_in_order(hosted_url: str) -> None:
    with connect(hosted_url) as connection:
        connection.sendall(b"".join(_request({**BODY, "id": str(number)}) for number in range(20)))
        answers = b""
        while answers.count(b'"data":[1.5]') < 20:
            answers += connection.recv(65536)
    ids = re.findall(rb'"id":"(\d+)"', answers)
    assert ids == [b"%d" % number for number in range(20)]


def test_a_client_that_leaves_is_not_computed_for(
    hosted_url: str, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    model = models["FP32"]
    model.hold = asyncio.Event()
    before = model.cancelled
    with caplog.at_level(logging.INFO, "octavo.access"):
        connection = connect(hosted_url)
        connection.sendall(_request(BODY))
        eventually(lambda: model.waiting == 1)
        connection.close()
        eventually(lambda: model.cancelled == before + 1)
        eventually(lambda: f"{INFER} {CLIENT_GONE}" in caplog.text)


def test_the_access_log_says_what_a_request_moved(web: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "octavo.access"):
        sent = json.dumps(BODY).encode()
        answer = web.post(INFER, content=sent)
    eventually(lambda: f", {len(sent)} bytes to and {len(answer.content)} bytes from FP32, request" in caplog.text)


def test_pages_of_other_sites_infer_nothing(web: httpx.Client) -> None:
    def status(origin: str, kind: str) -> int:
        headers = {"origin": origin, "content-type": kind}
        return web.post(INFER, content=json.dumps(BODY), headers=headers).status_code

    assert status("https://evil.example", "text/plain") == 403
    assert status("https://evil.example", "application/json") == 200  # which a browser asks about first
    assert status(str(web.base_url).rstrip("/"), "text/plain") == 200


def test_keys_and_memory_are_the_servers() -> None:
    with running(ServerSettings(api_key=("secret",)), *_make()) as url, httpx.Client(base_url=url) as web:
        refused = web.post(INFER, json=BODY)
        assert refused.status_code == 401
        assert "API key" in refused.json()["error"]
        headers = {"authorization": "Bearer secret"}
        assert web.post(INFER, json=BODY, headers=headers).status_code == 200
        closed = web.post("/v2/systemsharedmemory/unregister", headers=headers)
        assert closed.status_code == 501
        assert "--allow-client-shm" in closed.json()["error"]
        plain = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(InferenceServerException, match=r"401.*API key"):
            plain.get_model_metadata("FP32")


def test_models_that_are_not_ready(web: httpx.Client, models: Models) -> None:
    model = models["BOOL"]
    info = model.info
    model.state, model.info = WorkerState.LOADING, None
    try:
        answer = web.post("/v2/models/BOOL/infer", json=BODY)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "not at ready state" in answer.json()["error"]
        assert web.get("/v2/health/ready").status_code == 400
        assert web.get("/v2/models/BOOL/ready").status_code == 400
        assert web.get("/v2/health/live").status_code == 200
    finally:
        model.state, model.info = WorkerState.READY, info
    assert web.get("/v2/health/ready").status_code == 200


def test_the_routes_are_documented(web: httpx.Client) -> None:
    paths = web.get("/openapi.json").json()["paths"]
    assert "post" in paths["/v2/models/{model_name}/infer"]
    assert "get" in paths["/v2/models/{model_name}/versions/{model_version}/config"]
    assert "post" in paths["/v1/models/{model_name}:predict"]


def test_errors_below_the_routes_are_the_protocols(hosted_url: str) -> None:
    for path, kind in ((INFER, str), ("/v1/chat/completions", dict)):
        with connect(hosted_url) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\n\r\n".encode())  # without a Host
            answer = read_answer(connection)
        assert answer.status == 400
        assert isinstance(json.loads(answer.body)["error"], kind)  # type: ignore[attr-defined]
