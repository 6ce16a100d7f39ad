"""Requests that nobody waits for any more, queues that are full, and requests that wait too long."""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from tests.triton.comparing import INFER, Both, ask, asks, grpc_input, tensor
from tests.triton.servers import Served

ENOUGH = 1.5
"""Seconds that the model is kept busy."""


def seconds(value: float) -> triton_grpc.InferInput:
    return grpc_input("SECONDS", np.array([value], np.float32), "FP32")


def request(value: float, **parameters: Any) -> Any:
    return asks("slow", tensor("SECONDS", "FP32", [1], [value]), parameters=parameters)


def counts(server: Served) -> tuple[int, int]:
    """How many requests were begun, and how many of them were told that they are cancelled."""
    begun, cancelled = ask(server, request(0)).json()["outputs"]
    return begun["data"][0], cancelled["data"][0]


class Connection:
    """A request of HTTP on a connection of its own."""

    def __init__(self, server: Served, path: str, body: Any) -> None:
        host, port = server.http.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)
        self.sent = time.monotonic()
        self.seconds = 0.0

    def leave(self) -> None:
        self._socket.close()

    def answer(self) -> tuple[int, Any]:
        """The status and the body."""
        with self._socket.makefile("rb") as file:
            status = int(file.readline().split()[1])
            self.seconds = time.monotonic() - self.sent
            return status, json.loads(file.read().partition(b"\r\n\r\n")[2])


def slow(server: Served, value: float, model: str = "slow", **parameters: Any) -> Connection:
    body = request(value)[2] | {"parameters": parameters}
    return Connection(server, INFER.format(model), body)


def leave_http(server: Served, model: str) -> None:
    sent = [slow(server, 0.2, model) for _ in range(3)]
    time.sleep(0.3)
    for each in sent:
        each.leave()


def leave_grpc(server: Served, model: str) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        asked = [client.async_infer(model, [seconds(0.2)], callback=lambda *_: None) for _ in range(3)]
        time.sleep(0.3)
        for each in asked:
            each.cancel()


def leave_stream(server: Served, model: str) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        came: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: came.put((result, error)))
        for _ in range(3):
            client.async_stream_infer(model, [seconds(0.2)])
        time.sleep(0.3)
        client.stop_stream(cancel_requests=True)


@pytest.mark.parametrize("model", ["slow", "slow_twice"])
@pytest.mark.parametrize("leave", [leave_http, leave_grpc, leave_stream])
def test_what_waits_is_not_computed_when_its_client_leaves(
    both: Both, model: str, leave: Callable[[Served, str], None]
) -> None:
    """In Triton that holds for gRPC without ensembles."""
    begun = []
    for server in both:
        before, _ = counts(server)
        busy = slow(server, ENOUGH)
        time.sleep(0.2)
        leave(server, model)
        assert busy.answer()[0] == 200
        time.sleep(0.2)
        begun.append(counts(server)[0] - before)
    assert begun[0] == 1
    assert begun[1] == (1 if model == "slow" and leave is not leave_http else 4)


def test_what_is_computed_is_told(both: Both) -> None:
    _, before = counts(both[0])
    left = slow(both[0], 30)
    time.sleep(0.3)
    left.leave()
    began = time.monotonic()
    assert counts(both[0])[1] == before + 1
    assert time.monotonic() - began < 10


def failures(server: Served) -> int:
    found = server.ask("GET", "/v2/models/slow/stats").json()["model_stats"][0]["inference_stats"]
    return int(found["fail"]["count"])


def test_a_full_queue(both: Both) -> None:
    for server in both:
        before = failures(server)
        busy = slow(server, ENOUGH)
        time.sleep(0.2)
        waiting = [slow(server, 0.01) for _ in range(7)]
        statuses = [each.answer()[0] for each in waiting]
        assert busy.answer()[0] == 200
        refused = statuses.count(503)
        assert (statuses.count(200), refused) in ((4, 3), (5, 2))  # one may have been taken from the queue already
        assert failures(server) - before == (refused if server is both[0] else 0)  # Triton counts none of them


def test_each_waits_as_long_as_it_says(both: Both) -> None:
    """And is told at that time, whatever its neighbours say. Triton looks only when the model is free."""
    server = both[0]
    busy = slow(server, ENOUGH)
    time.sleep(0.2)
    limits = (300_000, 30_000_000, 700_000, 20_000_000)
    waiting = [slow(server, 0.01, timeout=limit) for limit in limits]
    threads = []
    answers: dict[int, tuple[int, Any]] = {}
    for number, each in enumerate(waiting):
        thread = threading.Thread(target=lambda number=number, each=each: answers.update({number: each.answer()}))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    assert busy.answer()[0] == 200
    assert [answers[number][0] for number in range(4)] == [503, 200, 503, 200]
    for number in (0, 2):
        assert answers[number][1] == {"error": "Request timeout expired"}
        assert limits[number] / 1e6 <= waiting[number].seconds + 0.01
        assert waiting[number].seconds < limits[number] / 1e6 + 0.5


def test_errors_of_models_are_failures(both: Both) -> None:
    for server in both:
        before = server.ask("GET", "/v2/models/errors/stats").json()["model_stats"][0]["inference_stats"]
        for value in (1, 2):
            assert ask(server, asks("errors", tensor("IN", "INT32", [1], [value]))).status_code == 500
        after = server.ask("GET", "/v2/models/errors/stats").json()["model_stats"][0]["inference_stats"]
        if server is both[0]:  # Triton counts some as successes
            assert after["fail"]["count"] == before["fail"]["count"] + 2
            assert after["success"]["count"] == before["success"]["count"]
