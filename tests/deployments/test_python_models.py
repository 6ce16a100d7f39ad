"""Python models of a repository, as Triton's clients see them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import Server, eventually, serving

MODELS = Path(__file__).parent.parent / "hosting" / "triton" / "python_models"
NAMES = ("everything", "streams", "asks", "reports", "readies", "completes")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    for name in NAMES:
        shutil.copytree(MODELS / name, repository / name)
    flags = (
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in NAMES if name != "completes"),
        "--http-header-forward-pattern=^my-|Tenant$",
        "--grpc-header-forward-pattern=^my-|Tenant$",
        "--http-restricted-api=trace,logging:admin-key=sesame",
        "--grpc-restricted-protocol=trace:admin-key=sesame",
    )
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


def tensor(kind: Any, name: str, array: np.ndarray, datatype: str) -> Any:
    found = kind.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def everything(kind: Any, act: str = "") -> list[Any]:
    act_tensor = tensor(kind, "act", np.array([[act]], object), "BYTES")
    return [tensor(kind, "x", np.ones((1, 2), np.float32), "FP32"), act_tensor]


def parameters_of(response: Any) -> dict[str, Any]:
    if isinstance(response, dict):
        return dict(response["parameters"])
    return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.parameters.items()}


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_what_a_client_says_reaches_the_model_and_what_that_says_the_client(
    kind: Any, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    client: Any = http if kind is triton_http else grpc
    for name in ("one", "two"):  # the second is known already but for its name
        result = client.infer(
            "everything",
            everything(kind),
            request_id=name,
            sequence_id=7,
            sequence_start=True,
            timeout=3_000_000,
            parameters={"a": 1, "b": "text", "c": True},
        )
        said = json.loads(result.as_numpy("said")[0, 0])
        assert said == said | {
            "request_id": name,
            "correlation_id": 7,
            "flags": 1,
            "timeout": 3_000_000,
            "parameters": {"a": 1, "b": "text", "c": True},
        }
        parameters = parameters_of(result.get_response())
        assert parameters == parameters | {"even": True, "unit": "m"}
    plain = json.loads(client.infer("everything", everything(kind)).as_numpy("said")[0, 0])
    assert (plain["request_id"], plain["correlation_id"], plain["parameters"]) == ("", 0, {})


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_headers_are_parameters_if_they_are_to_be(
    kind: Any, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    """Before those of the request's own."""
    client: Any = http if kind is triton_http else grpc
    for tenant in ("one", "two"):
        headers = {"my-name": "it", "x-tenant": tenant, "tenant-of": "none", "other": "none"}
        options = {"parameters": {"a": 1, "my-name": "own"}, "headers": headers}
        found = client.infer("everything", everything(kind), **options).as_numpy("said")[0, 0]
        assert json.loads(found)["parameters"] == {"a": 1, "my-name": "it", "x-tenant": tenant}


def test_headers_of_other_requests_are_parameters_too(server: Server, grpc: triton_grpc.InferenceServerClient) -> None:
    headers = {"my-name": "it"}
    body = {"x": [1, 2], "act": ""}
    answer = httpx.post(f"{server.url}/v2/models/everything/generate", json=body, headers=headers)
    assert json.loads(answer.json()["said"])["parameters"] == headers
    queue: Queue[Any] = Queue()
    grpc.start_stream(lambda result, error: queue.put(error or result), headers=headers)
    try:
        grpc.async_stream_infer("everything", everything(triton_grpc))
        assert json.loads(queue.get(timeout=30).as_numpy("said")[0, 0])["parameters"] == headers
    finally:
        grpc.stop_stream()


def test_parts_of_the_protocol_want_a_header(server: Server, grpc: triton_grpc.InferenceServerClient) -> None:
    for path in ("trace/setting", "models/everything/trace/setting", "logging"):
        for sent, status in (({}, 403), ({"admin-key": "open"}, 403), ({"Admin-Key": "sesame"}, 200)):
            answer = httpx.get(f"{server.url}/v2/{path}", headers=sent)
            assert answer.status_code == status
            if status == 403:
                assert answer.json() == {"error": "This API is restricted, expecting header 'admin-key'"}
    for headers in (None, {"admin-key": "sesame"}, {"triton-grpc-protocol-admin-key": "open"}):
        with pytest.raises(
            InferenceServerException, match=r"expecting header 'triton-grpc-protocol-admin-key'"
        ) as caught:
            grpc.get_trace_settings(headers=headers)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert grpc.get_trace_settings(headers={"triton-grpc-protocol-admin-key": "sesame"}).settings
    assert grpc.get_log_settings().settings


def test_metrics_have_a_port_of_their_own(server: Server) -> None:
    [line] = [each for each in server.said if "metrics are at " in each]
    where = line.split("metrics are at ")[1].strip()
    answer = httpx.get(where)
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'nv_inference_request_success{model="everything",version="1"}' in answer.text
    assert httpx.get(where.replace("/metrics", "/v2")).status_code == 404
    inputs = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    assert httpx.post(where.replace("/metrics", "/v2/models/everything/infer"), json=inputs).status_code == 404


@pytest.mark.parametrize(
    ("code", "status", "grpc_code"),
    [
        ("UNKNOWN", 400, "UNKNOWN"),
        ("INTERNAL", 500, "INTERNAL"),
        ("NOT_FOUND", 404, "NOT_FOUND"),
        ("INVALID_ARG", 400, "INVALID_ARGUMENT"),
        ("UNAVAILABLE", 503, "UNAVAILABLE"),
        ("UNSUPPORTED", 501, "UNIMPLEMENTED"),
        ("ALREADY_EXISTS", 400, "ALREADY_EXISTS"),
        ("CANCELLED", 400, "CANCELLED"),
    ],
)
def test_errors_have_the_statuses_of_triton_s(
    server: Server, grpc: triton_grpc.InferenceServerClient, code: str, status: int, grpc_code: str
) -> None:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
        {"name": "act", "datatype": "BYTES", "shape": [1, 1], "data": [f"error {code}"]},
    ]
    answer = httpx.post(f"{server.url}/v2/models/everything/infer", json={"inputs": inputs})
    assert (answer.status_code, answer.json()) == (status, {"error": "not this one"})
    with pytest.raises(InferenceServerException) as caught:
        grpc.infer("everything", everything(triton_grpc, f"error {code}"))
    assert (caught.value.status(), caught.value.message()) == (f"StatusCode.{grpc_code}", "not this one")


def stream(client: triton_grpc.InferenceServerClient, act: str, answers: int) -> list[Any]:
    """So many answers to a request of a stream."""
    queue: Queue[Any] = Queue()
    client.start_stream(lambda result, error: queue.put(error or result))
    try:
        inputs = [tensor(triton_grpc, "act", np.array([act], object), "BYTES")]
        client.async_stream_infer("streams", inputs, request_id="it", enable_empty_final_response=True)
        return [queue.get(timeout=30) for _ in range(answers)]
    finally:
        client.stop_stream()


def finals(results: list[Any]) -> list[bool]:
    return [each.get_response().parameters["triton_final_response"].bool_param for each in results]


def test_the_last_response_of_a_stream_is_marked(grpc: triton_grpc.InferenceServerClient) -> None:
    results = stream(grpc, "count 2", 3)
    assert [each.as_numpy("n") is not None for each in results] == [True, True, False]
    assert finals(results) == [False, False, True]
    results = stream(grpc, "last 2", 2)
    assert [each.as_numpy("n").tolist() for each in results] == [[0], [1]]
    assert finals(results) == [False, True]


def test_responses_are_events_of_generate_stream(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v2/models/streams/generate_stream", json={"act": "count 3"})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [each["n"] for each in events] == [0, 1, 2]


def test_a_model_asks_others_through_the_server(http: triton_http.InferenceServerClient) -> None:
    def said(act: str) -> Any:
        inputs = [tensor(triton_http, "act", np.array([[act]], object), "BYTES")]
        return json.loads(http.infer("asks", inputs).as_numpy("said")[0])

    before = http.get_inference_statistics("everything")["model_stats"][0]["inference_count"]
    assert said("doubles 3") == [[[7.0, 6.0]], "m"]
    after = http.get_inference_statistics("everything")["model_stats"][0]["inference_count"]
    assert after == before + 1
    assert said("itself 1") == "here"
    assert "wait for what comes of that" in said("itself 2")


def test_a_model_loads_and_unloads_others(http: triton_http.InferenceServerClient) -> None:
    def said(act: str) -> Any:
        inputs = [tensor(triton_http, "act", np.array([[act]], object), "BYTES")]
        return json.loads(http.infer("asks", inputs).as_numpy("said")[0])

    assert not http.is_model_ready("completes")
    assert said("loads completes") == "loaded"
    assert http.is_model_ready("completes")
    assert said("loads nobody").startswith("Failed to load model: ")
    assert said("unloads completes") == "unloaded"
    eventually(lambda: not http.is_model_ready("completes"))


def test_figures_are_among_the_server_s(server: Server, http: triton_http.InferenceServerClient) -> None:
    http.infer("reports", [tensor(triton_http, "x", np.array([5.0]), "FP64")])
    labels = '{model="reports",version="1"}'
    eventually(lambda: f"last_value{labels} 5.0" in httpx.get(f"{server.url}/metrics").text)
    text = httpx.get(f"{server.url}/metrics").text
    assert f"seen_total{labels} 1.0" in text
    assert 'value_sizes_bucket{le="10",model="reports",version="1"} 1.0' in text


def test_models_say_whether_they_are_ready(
    http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    for ready in (False, True):
        http.infer("readies", [tensor(triton_http, "ready", np.array([ready]), "BOOL")])
        assert http.is_model_ready("readies") is ready
        assert grpc.is_model_ready("readies") is ready


def test_clients_that_leave_are_noticed(server: Server) -> None:
    path = f"{server.url}/v2/models/streams/generate_stream"
    with httpx.stream("POST", path, json={"act": "until_cancelled"}) as answer:
        assert next(answer.iter_lines()).startswith("data: ")

    def count() -> int:
        answer = httpx.post(path, json={"act": "cancelled_so_far"})
        return int(json.loads(answer.text.removeprefix("data: "))["n"])

    eventually(lambda: count() == 1)
