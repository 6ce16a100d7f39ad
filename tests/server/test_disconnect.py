"""Clients that leave: noticed at once, streaming or not, running or queued."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.conftest import eventually
from tests.server.fake import FakeEngine
from tests.server.raw import raw_stream
from tests.server.test_operations import metric
from tests.server.test_streams import BODY

WHOLE = BODY | {"stream": False}
COMPLETIONS = {"prompt": ["one", "two", "three"], "n": 2}


@pytest.mark.parametrize("hold", [True, False], ids=["queued", "running"])
@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        ("/v1/chat/completions", BODY, 1),
        ("/v1/chat/completions", WHOLE, 1),
        ("/v1/chat/completions", WHOLE | {"n": 3}, 1),
        ("/v1/completions", COMPLETIONS, 3),
        ("/v1/completions", COMPLETIONS | {"stream": True}, 3),
    ],
)
def test_leaving_aborts(
    url: str,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    hold: bool,
    path: str,
    body: dict[str, Any],
    requests: int,
) -> None:
    engine.hold = hold
    engine.step_seconds = 0.05
    with caplog.at_level(logging.INFO), raw_stream(url, body, path) as connection:
        eventually(lambda: len(engine.ledger) == requests)
        if body.get("stream") and not hold:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    eventually(lambda: not engine.ledger, seconds=0.5)
    assert engine.aborts == {None: requests}
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("body", [WHOLE, BODY], ids=["whole", "streamed"])
def test_leaving_in_the_access_log(
    url: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture, body: dict[str, Any]
) -> None:
    engine.hold = not body.get("stream")
    engine.step_seconds = 0.05
    with caplog.at_level(logging.INFO, "octavo.access"):
        with raw_stream(url, body) as connection:
            eventually(lambda: bool(engine.ledger))
            if body.get("stream"):
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
        eventually(lambda: bool(caplog.records))
    assert re.fullmatch(
        r"POST /v1/chat/completions 499 [\d.]+ ms, \d+ prompt and \d+ output tokens of \S+, request \w+",
        caplog.messages[0],
    )


def test_storm(url: str, http: httpx.Client, engine: FakeEngine) -> None:
    """After many requests of every fate the counters add up, and so they do on the way."""

    def sums() -> tuple[float, float]:
        text = http.get("/metrics").text
        ended = metric(text, "vllm:request_success_total") + metric(text, "vllm:admission_rejections_total")
        live = metric(text, "vllm:num_requests_running") + metric(text, "vllm:num_requests_waiting")
        return metric(text, "octavo:requests_received_total"), ended + live

    engine.step_seconds = 0.002
    engine.capacity = 24

    def fate(number: int) -> None:
        body = {"messages": BODY["messages"], "stream": number % 2 == 0, "n": 1 + number % 3, "stop": "und"}
        if number % 4 < 2:
            http.post("/v1/chat/completions", json=body)
        else:
            raw_stream(url, body).close()

    before, _ = sums()
    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(fate, number) for number in range(60)]
        while not all(task.done() for task in running):
            received, accounted = sums()
            assert received == accounted
    assert all(task.exception() is None for task in running)
    eventually(lambda: not engine.ledger)
    received, accounted = sums()
    assert received == accounted
    # A client that goes before its request is read was never received.
    assert 50 <= received - before <= 120
