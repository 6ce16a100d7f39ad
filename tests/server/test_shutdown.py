"""The signal to stop, sent to a real process; and the socket, taken before anything else."""

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from octavo.errors import ConfigError
from octavo.server.listener import bind, bind_unix
from tests.server.conftest import eventually
from tests.server.sse import events
from tests.server.test_operations import metric

REPOSITORY = Path(__file__).parents[2]
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 20, "ignore_eos": True}


def few_files() -> None:
    """Begin with the usual kind of limit: low, but only softly so."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@contextlib.contextmanager
def process(step_seconds: float, drain_seconds: float) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server in a process of its own, whose engine takes so long for a step."""
    command = [sys.executable, "-m", "tests.server.fake", str(step_seconds), str(drain_seconds)]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=few_files
    )
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            eventually(lambda: client.get("/ready").status_code == 200)
            yield child, client
    finally:
        child.kill()
        child.communicate()


def test_drain() -> None:
    """Readiness goes first, new work is refused, what runs ends as if nothing had happened, then the process ends."""
    with process(step_seconds=0.2, drain_seconds=60) as (child, client):
        with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            chunks = response.iter_text()
            raw = next(chunks)
            child.send_signal(signal.SIGTERM)
            eventually(lambda: client.get("/ready").status_code == 503)
            assert client.get("/ready").json()["status"] == "draining"
            assert client.get("/health").status_code == 200
            refused = client.post("/v1/chat/completions", json=STREAM)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["message"] == "The server is shutting down."
            raw += "".join(chunks)
        assert events(raw)[-1]["choices"][0]["finish_reason"] == "length"
        assert len(events(raw)) == 22
        assert child.wait(timeout=10) == 0
        assert child.stderr is not None
        assert "Traceback" not in child.stderr.read()


def test_drain_timeout() -> None:
    """What is not done in time gets an error that says why, whether its answer has begun or not."""
    with process(step_seconds=0.1, drain_seconds=0.3) as (child, client):
        with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            chunks = response.iter_text()
            raw = next(chunks)
            child.send_signal(signal.SIGINT)
            raw += "".join(chunks)
        last = events(raw)[-1]
        assert last["error"]["message"] == "The server is shutting down."
        assert child.wait(timeout=10) == 0


def test_drain_timeout_of_whole_answers() -> None:
    whole = STREAM | {"stream": False}
    with process(step_seconds=0.2, drain_seconds=0.3) as (child, client), ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, "/v1/chat/completions", json=whole)
        eventually(lambda: metric(client.get("/metrics").text, "vllm:num_requests_running") == 1)
        child.send_signal(signal.SIGTERM)
        response = answer.result(timeout=10)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert child.wait(timeout=10) == 0


def test_drain_timeout_of_what_is_in_background() -> None:
    """Whoever follows it learns how it ended."""
    body = {"input": "hi", "background": True, "stream": True, "max_output_tokens": 100, "ignore_eos": True}
    with process(step_seconds=0.1, drain_seconds=0.3) as (child, client), contextlib.ExitStack() as stack:
        chunks = stack.enter_context(client.stream("POST", "/v1/responses", json=body)).iter_text()
        raw = next(chunks)
        name = json.loads(raw.split("\n")[1].removeprefix("data: "))["response"]["id"]
        others = stack.enter_context(client.stream("GET", f"/v1/responses/{name}?stream=true")).iter_text()
        late = next(others)
        eventually(lambda: metric(client.get("/metrics").text, "vllm:num_requests_running") == 1)
        child.send_signal(signal.SIGTERM)
        raw += "".join(chunks)
        assert late + "".join(others) == raw
        event, data = raw.removesuffix("\n\n").split("\n\n")[-1].split("\n")
        failed = json.loads(data.removeprefix("data: "))["response"]
        assert (event, failed["status"]) == ("event: response.failed", "failed")
        assert failed["error"]["message"] == "The server is shutting down."
        assert [item["status"] for item in failed["output"]] == ["incomplete"]
        assert child.wait(timeout=10) == 0


def test_second_signal_stops_at_once() -> None:
    with (
        process(step_seconds=0.5, drain_seconds=60) as (child, client),
        client.stream("POST", "/v1/chat/completions", json=STREAM) as response,
    ):
        chunks = response.iter_text()
        next(chunks)
        child.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/ready").status_code == 503)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
        assert time.monotonic() - started < 30  # of the 60 seconds that it would have waited


def test_idle_server_stops_at_once() -> None:
    with process(step_seconds=0.0, drain_seconds=60) as (child, client):
        assert client.get("/version").status_code == 200  # and its connection stays open
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
        assert time.monotonic() - started < 30  # of the 60 seconds that it would have waited


def test_more_connections_than_files_at_first() -> None:
    with process(step_seconds=0.0, drain_seconds=0) as (_, client), contextlib.ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port or 80)
        others = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(100)]
        for other in others:
            other.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert all(other.recv(15) == b"HTTP/1.1 200 OK" for other in others)


def test_port_in_use() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use; .*--port"
        ):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_addresses_that_cannot_be(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host} port {port}: "):
        bind(host, port)


def test_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    with bind_unix(str(path)), pytest.raises(ConfigError, match="Address already in use; choose another path"):
        bind_unix(str(path))
    assert path.is_socket()  # left behind, as by a server that was killed
    with bind_unix(str(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(ConfigError):
        bind_unix(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "keep me"
