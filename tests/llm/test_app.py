"""The server as a part of somebody's application."""

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

import octavo
from octavo import OctavoError
from octavo.llm.app import _from

BODY = {"prompt": "the quick", "max_tokens": 8, "temperature": 0}
MODELS = {
    "type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "headers": [(b"host", b"localhost")],
}  # fmt: skip
"""The scope of a request."""


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run somebody's application with uvicorn, as they would. Yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def mounted(model: str) -> Iterator[octavo.Application]:
    ai = octavo.create_app(model, max_num_seqs=8, served_model_name=["tiny"])
    yield ai
    ai.close()


@pytest.fixture(scope="module")
def app(mounted: octavo.Application) -> FastAPI:
    app = FastAPI()
    app.mount("/ai", mounted)
    app.mount("/also/here", mounted)

    @app.get("/own")
    async def own() -> str:
        return "theirs"

    return app


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


def engines() -> list[psutil.Process]:
    return psutil.Process(os.getpid()).children()


def test_the_openai_sdk_talks_to_it_beside_the_applications_own_routes(url: str, llm: octavo.LLM) -> None:
    client = openai.OpenAI(base_url=f"{url}/ai/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "fox"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, temperature=0, stream=True  # type: ignore[arg-type]
    )  # fmt: skip
    text = llm.chat(messages, octavo.SamplingParams(max_tokens=8, temperature=0))[0].text
    assert whole.choices[0].message.content == text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    assert httpx.get(f"{url}/own").json() == "theirs"


def test_several_at_once_and_under_two_paths(url: str) -> None:
    def ask(number: int) -> str:
        path = ("ai", "also/here")[number % 2]
        body = {**BODY, "prompt": f"{number % 6}", "stream": number % 3 == 0}
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{url}/{path}/v1/completions", json=body).raise_for_status().text

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(48)))
    assert all('"finish_reason"' in answer for answer in answers)
    assert '"/v1/completions"' in httpx.get(f"{url}/ai/metrics").text


def test_errors_have_the_servers_shape(url: str) -> None:
    missing = httpx.get(f"{url}/ai/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = httpx.post(f"{url}/ai/v1/completions", json={**BODY, "temperature": -1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
    assert httpx.get(f"{url}/nothing").json() == {"detail": "Not Found"}  # the outer application's


def test_probes_and_documentation_work_under_the_mount(url: str) -> None:
    assert httpx.get(f"{url}/ai/health").json()["status"] == "ok"
    assert httpx.get(f"{url}/ai/ready").status_code == 200
    for path in ("ai", "also/here"):
        assert f"url: '/{path}/openapi.json'" in httpx.get(f"{url}/{path}/docs").text
        described = httpx.get(f"{url}/{path}/openapi.json").json()
        assert described["servers"] == [{"url": f"/{path}"}]
        assert "/v1/chat/completions" in described["paths"]


def test_a_client_that_leaves_ends_its_request(url: str) -> None:
    body = {**BODY, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/ai/v1/completions", json=body, timeout=30) as response:
        next(response.iter_bytes())
    deadline = time.monotonic() + 10
    while " 0.0" not in next(
        line
        for line in httpx.get(f"{url}/ai/metrics").text.splitlines()
        if line.startswith("vllm:num_requests_running{")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_test_client_has_a_loop_for_every_request(app: FastAPI) -> None:
    client = TestClient(app)
    answers = [client.post("/ai/v1/completions", json=BODY).json()["choices"][0]["text"] for _ in range(3)]
    assert len(set(answers)) == 1
    with client.stream("POST", "/ai/v1/completions", json={**BODY, "stream": True}) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_several_models(model: str, tiny_model: Path) -> None:
    ai = octavo.create_app(model, str(tiny_model), in_process=True, kv_cache_memory_bytes="1MiB", threads=1)
    try:
        client = TestClient(ai)
        names = [card["id"] for card in client.get("/v1/models").json()["data"]]
        assert names == [model, str(tiny_model)]
        for name in names:
            assert client.post("/v1/completions", json={**BODY, "model": name}).json()["model"] == name
    finally:
        ai.close()


def test_keys_and_settings(model: str) -> None:
    ai = octavo.create_app(model, in_process=True, api_key=["secret"], max_body_bytes="1k", max_model_len=64)
    app = FastAPI()
    app.mount("/ai", ai)
    client = TestClient(app)
    try:
        assert client.post("/ai/v1/completions", json=BODY).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert client.post("/ai/v1/completions", json=BODY, headers=key).status_code == 200
        assert client.get("/ai/v1/models", headers=key).json()["data"][0]["max_model_len"] == 64
        assert client.post("/ai/v1/completions", json={**BODY, "prompt": "a" * 2000}, headers=key).status_code == 413
        assert client.get("/ai/health").json()["status"] == "ok"
    finally:
        ai.close()


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ([], {}, "name at least one model"),
        (["m"], {"max_num_seq": 1}, "the setting max_num_seq is unknown; did you mean max_num_seqs?"),
        (["m", "m"], {}, "'m' is a name of two deployments"),
        (["m"], {"port": 1}, "the setting port is unknown"),
        (["m"], {"max_num_seqs": 0}, "max_num_seqs is 0, but must be a whole number from 1 to 65,536"),
        (["m"], {"api_key": [""]}, "api_key must not be empty"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    models: list[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(OctavoError) as refused:
        octavo.create_app(*models, **settings)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_not_there_is_an_error_of_every_request() -> None:
    app = FastAPI()
    app.mount("/ai", octavo.create_app("/no/such/model"))
    reply = TestClient(app).post("/ai/v1/completions", json=BODY)
    assert reply.status_code == 503
    assert "/no/such/model: no such file or folder" in reply.json()["error"]["message"]


def test_the_outer_lifespan_loads_the_model_and_ends_the_engine(model: str) -> None:
    ai = octavo.create_app(model)
    app = FastAPI(lifespan=ai.lifespan)
    app.mount("/ai", ai)
    before = engines()
    for _ in range(2):  # a TestClient is entered as often as there are tests
        with TestClient(app) as client:
            assert client.get("/ai/ready").status_code == 200
            started = [engine for engine in engines() if engine not in before]
            assert len(started) == 1
        assert not any(engine.is_running() for engine in started)


def test_it_can_be_the_outermost_application(model: str) -> None:
    with TestClient(octavo.create_app(model, in_process=True)) as client:
        assert client.get("/ready").status_code == 200
        assert client.post("/v1/completions", json=BODY).status_code == 200
    with pytest.raises(OctavoError, match="no such file"), TestClient(octavo.create_app("/no/such/model")):
        pass


def test_a_cancelled_request_is_cancelled_inside(mounted: octavo.Application) -> None:
    """As a timeout of the outer application's middleware does it."""
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions", "root_path": "",
        "query_string": b"", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> dict[str, object]:
        return {
            "type": "http.request",
            "body": b'{"prompt": ["the"%b], "max_tokens": 200, "ignore_eos": true}' % (b', "the"' * 255),
        }

    async def send(message: object) -> None:
        raise AssertionError(message)

    async def body() -> AsyncIterator[dict[str, object]]:
        yield await receive()
        await asyncio.Event().wait()

    async def program() -> None:
        messages = body()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await mounted(scope, messages.__anext__, send)

    asyncio.run(program())


def test_an_answer_that_is_cancelled_at_its_head_goes_no_further(mounted: octavo.Application) -> None:
    """Who cancels the call, as a timeout does, may answer in its place."""
    sent: list[str] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def program() -> None:
        at_head, written = asyncio.Event(), asyncio.Event()

        async def send(message: MutableMapping[str, Any]) -> None:
            at_head.set()
            await written.wait()  # as a server waits for a client that reads slowly
            sent.append(message["type"])

        before = asyncio.all_tasks()
        call = asyncio.create_task(mounted(MODELS, receive, send))
        await at_head.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        written.set()
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)

    asyncio.run(program())
    assert sent == []


def test_nothing_is_left_to_await_when_the_outer_loop_has_ended() -> None:
    """What a request's answer is sent with belongs to a loop that may end before ours."""

    async def send() -> None:
        raise AssertionError("there is nobody to run this")

    async def answer(there: asyncio.AbstractEventLoop) -> None:
        async with asyncio.timeout(0.1):
            await _from(there, send)()

    ended, idle = asyncio.new_event_loop(), asyncio.new_event_loop()
    ended.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="closed"):
            asyncio.run(answer(ended))
        with pytest.raises(TimeoutError):
            asyncio.run(answer(idle))
        idle.close()
        gc.collect()
    assert [str(warning.message) for warning in told if "never awaited" in str(warning.message)] == []


def test_an_answer_that_closing_interrupts_after_its_head_is_whole(model: str) -> None:
    ai = octavo.create_app(model, in_process=True)
    sent: list[str] = []
    bodies: list[bytes] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])
        bodies.append(message.get("body", b""))
        if message["type"] == "http.response.start":
            await asyncio.to_thread(ai.close)

    asyncio.run(ai(MODELS, receive, send))
    assert sent == ["http.response.start", "http.response.body"]
    assert b'"data"' in bodies[1]


def test_a_request_that_closing_interrupts_is_answered(model: str) -> None:
    ai = octavo.create_app(model, in_process=True)
    client = TestClient(ai)
    body = {**BODY, "max_tokens": 200, "ignore_eos": True}
    assert client.post("/v1/completions", json=body).status_code == 200
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/v1/completions", json=body) for _ in range(4)]
        ai.close()
        for future in asked:
            reply = future.result(30)
            assert reply.status_code in (200, 503)
            assert {"error", "choices"} & reply.json().keys()
    ai.close()


def test_a_stream_that_closing_interrupts_says_so(model: str) -> None:
    ai = octavo.create_app(model, in_process=True)
    client = TestClient(ai)
    body = {**BODY, "max_tokens": 200, "ignore_eos": True, "stream": True}
    assert client.post("/v1/completions", json=BODY).status_code == 200
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/v1/completions", json=body) for _ in range(4)]
        ai.close()
        replies = [future.result(30) for future in asked]
    for reply in replies:
        assert reply.text.endswith("data: [DONE]\n\n") if reply.status_code == 200 else reply.status_code == 503
    ai.close()
