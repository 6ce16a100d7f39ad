"""A server's processes die, one at a time: the supervisor, a frontend, an engine."""

import asyncio
import collections
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.tiny import write_tiny_model
from tests.worker.servers import Server, serving

STREAMS = 16


def body(model: Path, seed: int, **changes: object) -> dict[str, object]:
    return {
        "model": str(model),
        "prompt": "the quick",
        "seed": seed,
        "max_tokens": 120,
        "ignore_eos": True,
        "stream": True,
        **changes,
    }


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds that other processes bring about."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


async def read(client: httpx.AsyncClient, request: dict[str, object], on_event: Callable[[], None]) -> str:
    """The text of a stream, which must end as it should."""
    pieces, last = [], ""
    async with client.stream("POST", "/v1/completions", json=request) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                pieces += [choice["text"] for choice in event["choices"]]
                on_event()
            last = line or last
    assert last == "data: [DONE]"
    return "".join(pieces)


async def read_all(
    server: Server, requests: list[dict[str, object]], on_event: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The texts of streams that run side by side. `on_event` is called with the number of the stream."""
    limits = httpx.Limits(max_connections=len(requests))
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        return await asyncio.gather(
            *(read(client, request, partial(on_event, number)) for number, request in enumerate(requests))
        )


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def test_an_engine_is_killed_and_streams_go_on(tiny_model: Path, tmp_path: Path) -> None:
    """Two models, sixteen streams on each: those of the other do not notice."""
    other = write_tiny_model(tmp_path / "other", seed=1)
    requests = [body(model, seed) for seed in range(STREAMS) for model in (tiny_model, other)]
    with serving(tiny_model, other, "--backend", "reference") as server:
        undisturbed = asyncio.run(read_all(server, requests))
        assert len(set(undisturbed)) == len(requests)
        victim, survivor = server.engine(str(tiny_model)), server.engine(str(other))
        events = 0

        def kill_in_the_midst(_: int) -> None:
            nonlocal events
            events += 1
            if events == 10 * len(requests):
                victim.kill()

        assert asyncio.run(read_all(server, requests, kill_in_the_midst)) == undisturbed
        assert server.engine(str(tiny_model)) != victim
        assert server.engine(str(other)) == survivor


def test_an_engine_dies_while_clients_use_all_descriptors(tiny_model: Path) -> None:
    with (
        serving(tiny_model, "--backend", "reference", descriptors=160) as server,
        contextlib.ExitStack() as connections,
    ):
        engine = server.engine(str(tiny_model))
        address = httpx.URL(server.url)
        request = body(tiny_model, 1)
        undisturbed = asyncio.run(read_all(server, [request]))
        events = 0

        def connect_and_kill(_: int) -> None:
            nonlocal events
            events += 1
            if events == 5:
                for _ in range(300):
                    connections.enter_context(socket.create_connection((address.host, address.port or 80), timeout=20))
                engine.kill()

        assert asyncio.run(read_all(server, [request], connect_and_kill)) == undisturbed


def test_a_frontend_is_killed_and_another_takes_its_place(tiny_model: Path) -> None:
    with serving(tiny_model, "--backend", "reference") as server, httpx.Client(base_url=server.url, timeout=60) as http:
        [frontend], engine = server.frontends, server.engine(str(tiny_model))
        with http.stream("POST", "/v1/completions", json=body(tiny_model, 1, n=8, max_tokens=240)) as response:
            lines = response.iter_lines()
            next(lines)
            frontend.kill()
            with pytest.raises(httpx.HTTPError):
                collections.deque(lines)
        # The connection waits in the socket that the supervisor holds until somebody answers.
        answer = http.post("/v1/completions", json=body(tiny_model, 1, stream=False))
        assert answer.status_code == 200
        assert server.frontends != [frontend]
        assert server.engine(str(tiny_model)) == engine
        # What the dead one had asked for is dropped when its lease has run out, or has ended by itself.
        eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
        assert metric(server, "vllm:num_requests_running") == 0


def test_several_frontends_answer_on_one_port_and_drain_together(tiny_model: Path) -> None:
    with serving(tiny_model, "--backend", "reference", "--api-workers", "3") as server:
        assert len(server.frontends) == 3
        requests = [body(tiny_model, seed) for seed in range(STREAMS)]
        begun: set[int] = set()

        def signal_when_all_have_begun(stream: int) -> None:
            if stream not in begun:
                begun.add(stream)
                if len(begun) == STREAMS:
                    server.process.send_signal(signal.SIGTERM)

        [first] = asyncio.run(read_all(server, requests[:1]))
        texts = asyncio.run(read_all(server, requests, signal_when_all_have_begun))
        assert texts[0] == first
        assert all(texts)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_supervisor(tiny_model: Path, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        with serving(tiny_model, "--api-workers", "2", temporary=temporary) as server:
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert len(children) == 3
            server.process.send_signal(number)
            assert server.process.wait(30) == (-number if number is signal.SIGKILL else 0)
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive
        left = list(Path(temporary).glob("octavo-*"))
        assert len(left) == (2 if number is signal.SIGKILL else 0)  # of sockets, and of what several frontends share
        with serving(tiny_model, temporary=temporary):
            assert not any(folder.exists() for folder in left)


def test_ctrl_c_in_a_terminal_drains(tiny_model: Path) -> None:
    """The terminal sends the signal to the whole foreground group."""
    with serving(tiny_model, "--backend", "reference") as server:
        sent = False

        def interrupt(_: int) -> None:
            nonlocal sent
            if not sent:
                sent = True
                for process in psutil.Process(server.process.pid).children(recursive=True):
                    process.send_signal(signal.SIGINT)
                server.process.send_signal(signal.SIGINT)

        [text] = asyncio.run(read_all(server, [body(tiny_model, 1)], interrupt))
        assert len(text) > 100
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once(tiny_model: Path) -> None:
    with serving(tiny_model, "--backend", "reference", "--shutdown-timeout", "600") as server:
        engine = server.engine(str(tiny_model))
        engine.suspend()  # what is in flight would never end
        with httpx.Client(base_url=server.url, timeout=60) as http:

            def ask() -> None:
                response = http.post("/v1/completions", json=body(tiny_model, 1, stream=False))
                assert response.status_code == 503
                assert "shutting down" in response.json()["error"]["message"]

            with ThreadPoolExecutor() as pool:
                asked = pool.submit(ask)
                eventually(lambda: metric(server, "octavo:requests_received_total") == 1)
                server.process.send_signal(signal.SIGTERM)
                eventually(lambda: http.get("/ready").json()["status"] == "draining")
                server.process.send_signal(signal.SIGTERM)
                asked.result()
        assert server.process.wait(30) == 0


def test_a_model_without_a_tokenizer_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    """It is the frontend that finds out; the supervisor says it."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(tiny_model / file)
    command = [sys.executable, "-m", "octavo", "serve", str(tmp_path), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert "tokenizer" in line
