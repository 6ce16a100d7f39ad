"""Models whose answers are kept, as clients see them: what is answered without the model, and what is not."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http

from octavo.hosting import caching_client
from octavo.hosting.batching import Batching
from octavo.hosting.caching_client import CachingClient
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.response_cache import ResponseCache
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded
from octavo.hosting.trace import LEVELS, Trace
from octavo.server.settings import ServerSettings
from tests.server.fake import running
from tests.server.inference.fake import FakeClient, deployed

SIZE = 1 << 22


class Counting:
    """Counts how often it is called. Attributes: client: of its model. name: of that."""

    def __init__(self, name: str, cache: ResponseCache, **info: Any) -> None:
        self.calls = 0
        described = HostedInfo(
            name=name,
            runtime="python",
            platform="python",
            inputs=tuple(TensorSpec(name=each, datatype=None, dims=None) for each in ("A", "B")),
            outputs=(
                TensorSpec(name="A", datatype=None, dims=None),
                TensorSpec(name="CALLS", datatype=Datatype.INT32, dims=None),
                TensorSpec(name="SECRET", datatype=Datatype.INT32, dims=None, optional=True),
            ),
            response_cache=True,
            **info,
        )
        inner = deployed(described, self._compute)
        assert isinstance(inner.client, FakeClient)
        self.client = inner.client
        self.deployment = replace(inner, client=CachingClient(inner.client, cache, name))

    def _compute(self, given: Any) -> dict[str, Encoded]:
        self.calls += 1
        calls = Encoded(Datatype.INT32, (1,), np.array([self.calls], "<i4").tobytes())
        return {"A": given["A"], "CALLS": calls, "SECRET": calls}


@pytest.fixture(scope="module")
def models() -> dict[str, Counting]:
    cache = ResponseCache(SIZE)
    body = {"type": "object"}
    return {
        "plain": Counting("plain", cache),
        "twin": Counting("twin", cache),
        "orderly": Counting("orderly", cache, queue=Batching(max_batch_size=1, preserve_ordering=True)),
        "json": Counting("json", cache, body=body),
    }


@pytest.fixture(scope="module")
def url(models: dict[str, Counting]) -> Iterator[str]:
    with running(ServerSettings(), *(each.deployment for each in models.values())) as found:
        yield found


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def tensor(name: str, *values: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "FP32", "data": list(values), **more}


def ask(http: httpx.Client, model: str, *inputs: dict[str, Any], outputs: Any = (), **more: Any) -> dict[str, Any]:
    """The outputs, by name, each with its shape."""
    body = {"inputs": list(inputs), **more}
    if outputs:
        body["outputs"] = [{"name": each} for each in outputs]
    answer = httpx.Response.json(http.post(f"/v2/models/{model}/infer", json=body))
    assert "error" not in answer, answer
    return {each["name"]: (each["shape"], each["data"]) for each in answer["outputs"]}


def calls(answer: dict[str, Any]) -> int:
    """How often the model had been called when it gave an answer."""
    count: int = answer["CALLS"][1][0]
    return count


# --- through HTTP -----------------------------------------------------------------------------------------------------


def test_whoever_asks_the_same_gets_the_same_without_the_model(http: httpx.Client, models: dict[str, Counting]) -> None:
    a, b = tensor("A", 1, 2), tensor("B", 3)
    first = ask(http, "plain", a, b)
    before = models["plain"].calls
    assert ask(http, "plain", a, b) == first
    assert ask(http, "plain", b, a) == first  # in whichever order the tensors come
    more = {"id": "7", "parameters": {"priority": 1, "timeout": 5_000_000, "of_the_model": "x"}}
    assert ask(http, "plain", a, b, **more) == first  # as in Triton, only tensors count
    assert models["plain"].calls == before
    # The same numbers as bytes, and read from there.
    binary = triton_http.InferenceServerClient(str(http.base_url).removeprefix("http://"))
    inputs = [triton_http.InferInput("A", [2], "FP32"), triton_http.InferInput("B", [1], "FP32")]
    for each, values in zip(inputs, ([1, 2], [3]), strict=True):
        each.set_data_from_numpy(np.array(values, np.float32))
    answer = binary.infer("plain", inputs)
    assert answer.as_numpy("A").tolist() == [1, 2]
    assert answer.as_numpy("CALLS").tolist() == [calls(first)]
    assert models["plain"].calls == before
    binary.close()


@pytest.mark.parametrize(
    "other",
    [
        {"data": [1, 2, 3, 5]},
        {"shape": [2, 2]},  # Triton looks at bytes alone, and answers with the other shape
        {"datatype": "INT32"},
    ],
    ids=["bytes", "shape", "datatype"],
)
def test_whoever_asks_something_else_gets_something_else(
    http: httpx.Client, models: dict[str, Counting], other: dict[str, Any]
) -> None:
    a = {"name": "A", "shape": [4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    b = tensor("B", 1)
    first = ask(http, "plain", a, b)
    second = ask(http, "plain", {**a, **other}, b)
    assert second["A"] == ({**a, **other}["shape"], {**a, **other}["data"])
    assert calls(second) == calls(first) + 1 or models["plain"].calls > calls(first)
    assert ask(http, "plain", {**a, **other}, b) == second


def test_bytes_do_not_wander_from_one_tensor_to_the_next(http: httpx.Client) -> None:
    one = ask(http, "plain", tensor("A", 1, 2), tensor("B", 3))
    other = ask(http, "plain", tensor("A", 1), tensor("B", 2, 3))
    assert (one["A"], other["A"]) == (([2], [1, 2]), ([1], [1]))


def test_models_have_answers_of_their_own(http: httpx.Client) -> None:
    request = tensor("A", 4), tensor("B", 4)
    assert ask(http, "plain", *request)["CALLS"] != ask(http, "twin", *request)["CALLS"]


def test_wanted_outputs_are_those_that_come(http: httpx.Client, models: dict[str, Counting]) -> None:
    """Triton keeps one answer for all, and gives those who want other outputs the wrong ones."""
    request = tensor("A", 5, 5), tensor("B", 5)
    assert list(ask(http, "plain", *request, outputs=["CALLS"])) == ["CALLS"]
    whole = ask(http, "plain", *request)
    assert sorted(whole) == ["A", "CALLS"]
    assert list(ask(http, "plain", *request, outputs=["CALLS"])) == ["CALLS"]
    assert sorted(ask(http, "plain", *request, outputs=["A", "SECRET"])) == ["A", "SECRET"]
    before = models["plain"].calls
    assert ask(http, "plain", *request, outputs=["CALLS", "A"]) == whole  # they are all that there are
    assert sorted(ask(http, "plain", *request, outputs=["SECRET", "A"])) == ["A", "SECRET"]
    assert models["plain"].calls == before


def test_errors_are_not_kept(http: httpx.Client, models: dict[str, Counting]) -> None:
    """Triton answers the second request with status 200 and no output."""
    model = models["plain"]
    body = {"inputs": [tensor("A", 6), tensor("B", 6)]}
    model.client.error = InferenceError("it is six", Code.INTERNAL)
    for _ in range(2):
        answer = http.post("/v2/models/plain/infer", json=body)
        assert (answer.status_code, answer.json()) == (500, {"error": "it is six"})
    model.client.error = None
    assert calls(ask(http, "plain", *body["inputs"])) == model.calls


def test_large_requests_are_digested_beside_the_event_loop(
    http: httpx.Client, models: dict[str, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    digest = CachingClient._digest

    def noting(self: CachingClient, *given: Any) -> bytes:
        threads.append(threading.current_thread())
        return digest(self, *given)

    monkeypatch.setattr(CachingClient, "_digest", noting)
    monkeypatch.setattr(caching_client, "INLINE_BYTES", 4000)
    a = tensor("A", *range(1000))
    first = ask(http, "plain", a, tensor("B", 1))
    before = models["plain"].calls
    assert ask(http, "plain", a, tensor("B", 1)) == first
    assert models["plain"].calls == before
    models["plain"].client.error = InferenceError("it is large", Code.INTERNAL)
    answer = http.post("/v2/models/plain/infer", json={"inputs": [a, tensor("B", 2)]})
    models["plain"].client.error = None
    assert (answer.status_code, answer.json()) == (500, {"error": "it is large"})
    ask(http, "plain", tensor("A", 9), tensor("B", 9))
    assert threads[3] not in threads[:3]  # the small one


def test_bodies_are_found_by_their_type_and_bytes(http: httpx.Client, models: dict[str, Counting]) -> None:
    seen = models["json"].deployment.client.statistics
    for body, kind, hits in (
        (b'{"x": 1}', "application/json", 0),
        (b'{"x": 1}', "application/json", 1),
        (b'{"x": 2}', "application/json", 1),
        (b'{"x": 1}', "application/x-json", 1),
        (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b", 1),
        (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b", 1),  # another client has another boundary
        (b'{"x": 2}', "application/json", 2),
    ):
        answer = http.post("/v1/models/json/predict", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200
        assert answer.content == body
        assert seen.cache_hits == hits, (body, kind)


def test_statistics_and_metrics_tell_hits_from_misses(http: httpx.Client, models: dict[str, Counting]) -> None:
    request = tensor("A", 1, 1), tensor("B", 7)
    ask(http, "twin", *request)
    before = http.get("/v2/models/twin/stats").json()["model_stats"][0]
    for _ in range(3):
        ask(http, "twin", *request)
    ask(http, "twin", tensor("A", 8), tensor("B", 8))
    after = http.get("/v2/models/twin/stats").json()["model_stats"][0]

    def grown(name: str, unit: str = "count") -> int:
        grown: int = after["inference_stats"][name][unit] - before["inference_stats"][name][unit]
        return grown

    assert (grown("success"), grown("cache_hit"), grown("cache_miss"), grown("queue")) == (4, 3, 1, 4)
    assert [grown(f"compute_{each}") for each in ("input", "infer", "output")] == [1, 1, 1]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["execution_count"] == before["execution_count"] + 1
    assert grown("cache_hit", "ns") > 0
    assert grown("cache_miss", "ns") > 0
    assert grown("success", "ns") > grown("cache_hit", "ns")
    lines = http.get("/metrics").text.splitlines()
    seen = models["twin"].deployment.client.statistics
    for name, value in (
        ("nv_cache_num_hits_per_model", seen.cache_hits),
        ("nv_cache_num_misses_per_model", seen.cache_misses),
        ("nv_cache_hit_duration_per_model", seen.cache_hit_time // 1000),
        ("nv_cache_miss_duration_per_model", seen.cache_miss_time // 1000),
        ("nv_inference_request_success", seen.success),
        ("nv_inference_count", seen.inferences),
    ):
        assert f'{name}{{model="twin",version="1"}} {float(value)}' in lines


# --- as programs ask --------------------------------------------------------------------------------------------------


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


def inference(*values: float) -> Any:
    data = np.array(values, "<f4").tobytes()
    tensor = Encoded(Datatype.FP32, (len(values),), data)
    return caching_client.Inference(inputs={"A": tensor, "B": tensor})


@in_a_loop
async def test_a_model_that_keeps_the_order_of_requests_keeps_it() -> None:
    """An answer that is there waits for those before it, which the model still computes."""
    model = Counting("orderly", ResponseCache(SIZE), queue=Batching(max_batch_size=1, preserve_ordering=True))
    client = model.deployment.client
    await client.infer(inference(1))
    model.client.hold = asyncio.Event()
    ended: list[str] = []
    pending = {
        name: client.begin(inference(value), lambda _, name=name: ended.append(name))  # type: ignore[misc]
        for name, value in (("computed", 2), ("known", 1), ("left", 3), ("known too", 1), ("given up", 1))
    }
    while model.client.waiting < 2:
        await asyncio.sleep(0.001)
    client.leave(pending["left"])
    client.leave(pending["given up"])
    while model.client.waiting > 1:
        await asyncio.sleep(0.001)
    assert ended == []
    model.client.hold.set()
    await pending["known too"].wait()
    assert ended == ["computed", "known", "known too"]
    client.begin(inference(1), lambda _: ended.append("at once"))
    assert ended[-1] == "at once"
    assert model.calls == 2


@in_a_loop
async def test_what_a_client_wants_no_more_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting("plain", ResponseCache(SIZE))
    client = model.deployment.client
    model.client.hold = asyncio.Event()
    client.leave(client.begin(inference(1)))
    assert model.client.cancelled == 1
    monkeypatch.setattr(caching_client, "INLINE_BYTES", 0)
    large = client.begin(inference(2))
    while not model.client.waiting:
        await asyncio.sleep(0.001)
    client.leave(large)
    with pytest.raises(InferenceError, match="Request cancelled"):
        large.only()
    while model.client.cancelled < 2:
        await asyncio.sleep(0.001)
    assert client.pending == 0
    assert model.calls == 0


@in_a_loop
async def test_another_edition_of_a_model_has_answers_of_its_own() -> None:
    """A process that is started again may have read another file."""
    model = Counting("plain", ResponseCache(SIZE))
    client = model.deployment.client
    for edition, count in (("1", 1), ("1", 1), ("2", 2), ("2", 2)):
        model.client.edition = edition
        outputs = await client.infer(inference(1))
        assert np.frombuffer(outputs["CALLS"].data, "<i4").tolist() == [count]


@in_a_loop
async def test_requests_that_are_traced_are_also_where_the_model_is_not_asked() -> None:
    model = Counting("traced", ResponseCache(SIZE))
    seen = []
    for _ in range(2):
        ended: list[Trace] = []
        trace = Trace(LEVELS, ended.append)
        await model.deployment.client.infer(replace(inference(1), trace=trace.root))
        trace.close()
        assert ended == [trace]
        seen.append(([name for name, _ in trace.root.events], [tensor[:2] for tensor in trace.root.tensors]))
    asked, found = seen
    assert model.calls == 1
    assert {name for name in asked[0] if name not in found[0]} == {
        *("COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
    }
    assert found[0] == ["REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]
    assert found[1] == asked[1]
    assert ("TENSOR_BACKEND_OUTPUT", "CALLS") in found[1]
