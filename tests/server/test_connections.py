"""How many connections a server takes, who makes room, and what those hear for whom there is none."""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from octavo.server.connections import PROBE_CONNECTIONS
from octavo.server.settings import ServerSettings
from tests.server.conftest import eventually
from tests.server.fake import FakeEngine, running, served
from tests.server.raw import connect, raw_stream, read_answer

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
HALF = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
LIMIT = 3


@pytest.fixture
def small(_engine: FakeEngine) -> Iterator[str]:
    """A server for three clients."""
    with running(ServerSettings(max_connections=LIMIT, request_head_timeout=30), served(_engine)) as url:
        yield url


@contextlib.contextmanager
def occupied(url: str, count: int = LIMIT) -> Iterator[list[socket.socket]]:
    """Clients in the middle of a request: none of them can be sent away."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(count)]
        for client in clients:
            client.sendall(HALF)
        time.sleep(0.1)  # until the server has read it; otherwise they are in each other's way as below
        yield clients


def test_a_connection_too_many_is_refused_in_words(small: str, engine: FakeEngine) -> None:
    with occupied(small):
        for body in (CHAT, CHAT | {"stream": True}, {"messages": [{"role": "user", "content": "x" * 300_000}]}):
            answer = httpx.post(f"{small}/v1/chat/completions", json=body)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "service_unavailable"
            assert "as many connections as it takes, 3" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
    assert engine.requests == []
    eventually(lambda: httpx.post(f"{small}/v1/chat/completions", json=CHAT).status_code == 200)


def test_probes_are_answered_all_the_same(small: str) -> None:
    with occupied(small):
        for path in ("/health", "/ready"):
            answer = httpx.get(small + path)
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
        assert httpx.get(f"{small}/v1/models").status_code == 503


def test_far_too_many_are_refused_at_once(small: str) -> None:
    with occupied(small), occupied(small, PROBE_CONNECTIONS), connect(small) as late:
        assert read_answer(late).status == 503


def test_the_longest_idle_makes_room(small: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(small)) for _ in range(LIMIT)]
        for client in clients:
            client.sendall(HALF + b"\r\n")
            assert read_answer(client).status == 200
        eventually(lambda: httpx.get(f"{small}/version").status_code == 200)  # once they have been idle for a second
        first, *others = clients
        assert first.recv(1) == b""
        for client in others:
            client.sendall(HALF + b"\r\n")
            assert read_answer(client).status == 200


def test_a_running_answer_is_never_cut_off_for_others(small: str, engine: FakeEngine) -> None:
    engine.hold = True
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw_stream(small, CHAT)) for _ in range(LIMIT)]
        eventually(lambda: len(engine.ledger) == LIMIT)
        time.sleep(1.1)
        assert httpx.get(f"{small}/v1/models").status_code == 503
        engine.hold = False
        assert [read_answer(client).status for client in clients] == [200] * LIMIT


def test_descriptors_are_kept_in_reserve() -> None:
    """However many clients come, the server can still open files, and recovers when they leave."""
    descriptors = 256

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    command = [sys.executable, "-m", "tests.server.fake", "0", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            eventually(lambda: reachable(url), seconds=30)
            before = psutil.Process(process.pid).num_fds()
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(url)) for _ in range(2 * descriptors)]
                for client in clients:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        client.sendall(HALF)
                assert read_answer(clients[-1]).status == 503
                assert before < psutil.Process(process.pid).num_fds() <= descriptors - 16
            eventually(lambda: reachable(url))
            assert httpx.post(f"{url}/v1/chat/completions", content=json.dumps(CHAT), headers=JSON).status_code == 200
        finally:
            process.kill()


JSON = {"content-type": "application/json"}


def reachable(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/version").status_code == 200
    return False
