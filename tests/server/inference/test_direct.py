"""The two ways of an inference through the server: clients cannot tell them apart.

A page's header Origin, which `through` sends, has a request go through the application.
"""

import asyncio
import contextlib
import gc
import json
import logging
import re
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from typing import Any

import msgspec
import pytest
import uvloop

from octavo.deployments import Deployments
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pending import Pending
from octavo.server.app import create_app
from octavo.server.body import SMALL_BYTES
from octavo.server.context import TENSOR_BODIES_HELD, Server
from octavo.server.inference.direct import DirectWay
from octavo.server.inference.exchange import Exchange
from octavo.server.keys import ApiKey, PriorityRange
from octavo.server.listener import address_of, bind
from octavo.server.request_context import CLIENT_GONE
from octavo.server.run import HttpServer
from octavo.server.settings import ServerSettings
from tests.server.conftest import eventually
from tests.server.inference.conftest import MAX_BODY, _make
from tests.server.inference.fake import UNAVAILABLE, FakeClient, fake
from tests.server.raw import connect, read_answer

Models = dict[str, FakeClient]

INFER = "/v2/models/FP32/infer"
PREDICT = "/v1/models/json/predict"
BODY = json.dumps({"inputs": [{"name": "IN", "shape": [1], "datatype": "FP32", "data": [1.5]}]}).encode()
THROUGH = "origin: http://localhost"


def request(path: str = INFER, body: bytes = BODY, *fields: str, method: str = "POST") -> bytes:
    head = "\r\n".join(
        [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *fields, "x-request-id: me"]
    )
    return head.encode() + b"\r\n\r\n" + body


def ask(url: str, sent: bytes) -> HTTPResponse:
    with connect(url) as connection:
        connection.sendall(sent)
        return read_answer(connection, sent.split(b" ", 1)[0].decode())


def seen(answer: HTTPResponse) -> tuple[int, dict[str, str], bytes]:
    """What a client sees of it, but for the time."""
    headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() != "date"}
    return answer.status, headers, answer.body  # type: ignore[attr-defined]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which requests were answered directly, as they come."""
    found: list[bool] = []
    begin, recall = DirectWay.begin, DirectWay.recall

    def note(self: DirectWay, connection: Any, data: bytes) -> Exchange | None:
        exchange = begin(self, connection, data)
        found.append(exchange is not None)
        return exchange

    def note_recalled(self: DirectWay, connection: Any, data: bytes) -> Exchange | None:
        exchange = recall(self, connection, data)
        if exchange is not None:
            found.append(True)
        return exchange

    monkeypatch.setattr(DirectWay, "begin", note)
    monkeypatch.setattr(DirectWay, "recall", note_recalled)
    return found


BINARY = json.dumps(
    {
        "inputs": [{"name": "IN", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
).encode()

SAME = {
    "json": request(),
    "a version": request("/v2/models/FP32/versions/1/infer"),
    "binary": request(INFER, BINARY + bytes(8), f"inference-header-content-length: {len(BINARY)}"),
    "large": request(
        INFER,
        (large := BINARY.replace(b"[1, 2]", b"[1, 262144]").replace(b": 8}", b": 1048576}")) + bytes(2**20),
        f"inference-header-content-length: {len(large)}",
    ),
    "compressed": request(
        INFER, BODY.replace(b"1.5", b",".join([b"1"] * 999)).replace(b"[1]", b"[999]", 1), "accept-encoding: gzip"
    ),
    "a prediction": request(PREDICT, b'{"a": 1}', "content-type: application/json"),
    "a prediction of tensors": request("/v1/models/FP32/predict", b'{"IN": [1.5]}'),
    "a prediction with a query": request(f"{PREDICT}?a=b", b"{}"),
    "a prediction of none": request("/v1/models/none/predict", b"{}"),
    "a prediction that is too large": request(PREDICT, bytes(MAX_BODY + 1)),
    "no body": request(body=b""),
    "no json": request(body=b"{"),
    "too short": request(INFER, BINARY + bytes(7), f"inference-header-content-length: {len(BINARY)}"),
    "a head too long": request(INFER, BODY, "inference-header-content-length: 9999"),
    "no model": request("/v2/models/none/infer"),
    "no version": request("/v2/models/FP32/versions/7/infer"),
    "a model that streams": request("/v2/models/words/infer"),
    "too large": request(INFER, bytes(MAX_BODY + 1)),
    "another method": request(method="GET"),
    "another host": request(INFER, BODY).replace(b"localhost", b"evil.example"),
    "a query": request(f"{INFER}?a=b"),
    "an escaped name": request("/v2/models/FP%332/infer"),
    "a packed body": request(INFER, BODY, "content-encoding: br"),
    "an end": request(INFER, BODY, "connection: close"),
}


@pytest.mark.parametrize("sent", SAME.values(), ids=SAME)
def test_answers_are_the_same(hosted_url: str, models: Models, sent: bytes) -> None:
    through = sent.replace(b"x-request-id", f"{THROUGH}\r\nx-request-id".encode())
    assert seen(ask(hosted_url, sent)) == seen(ask(hosted_url, through))


@pytest.mark.parametrize("sent", [each for name, each in SAME.items() if name != "an end"])
def test_what_is_asked_again_is_answered_the_same(hosted_url: str, models: Models, sent: bytes) -> None:
    first = seen(ask(hosted_url, sent))
    method = sent.split(b" ", 1)[0].decode()
    with connect(hosted_url) as connection:
        for _ in range(3):
            connection.sendall(sent)
            assert seen(read_answer(connection, method)) == first
            if first[1].get("connection") == "close":
                return
        head, end, body = sent.partition(b"\r\n\r\n")
        connection.sendall(head + end + body[:-1])  # known, and still not all there
        connection.sendall(body[-1:])
        assert seen(read_answer(connection, method)) == first
        connection.sendall(sent + sent + sent)
        answers = connection.makefile("rb")
        for _ in range(3):
            status = int(answers.readline().split()[1])
            fields = dict(line.rstrip().decode().split(": ", 1) for line in iter(answers.readline, b"\r\n"))
            del fields["date"]
            assert (status, fields, answers.read(int(fields["content-length"]))) == first


def test_a_head_that_was_seen_is_known_again(hosted_url: str, begun: list[bool]) -> None:
    recalled: list[bool] = []
    with pytest.MonkeyPatch.context() as patch, connect(hosted_url) as connection:
        recall = DirectWay.recall

        def note(self: DirectWay, connection: Any, data: bytes) -> Exchange | None:
            exchange = recall(self, connection, data)
            recalled.append(exchange is not None)
            return exchange

        patch.setattr(DirectWay, "recall", note)
        for fields in ("x-a: 1",), ("x-a: 1",), ("x-a: 2",), ("x-a: 1",), ("x-a: 2",):
            connection.sendall(request(INFER, BODY, *fields))
            assert read_answer(connection, "POST").status == 200
    assert recalled == [False, True, False, True, True]


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\n\n"])
def test_a_head_that_ends_otherwise_is_not_taken_for_a_longer_one(hosted_url: str, models: Models, end: bytes) -> None:
    """What follows an end that a parser may allow is never part of the head that is remembered."""
    inner = request(INFER, BODY.replace(b"1.5", b"2.5"))
    outer = request(INFER, inner).replace(b"\r\n\r\n", end, 1)
    answers = []
    for _ in range(3):
        with connect(hosted_url) as connection:
            connection.sendall(outer)
            answers.append(seen(read_answer(connection, "POST")))
    assert answers[0][0] == 400
    assert answers[1:] == [answers[0]] * 2


def test_the_meaning_of_a_json_goes_with_the_model_and_the_key(models: Models) -> None:
    """The same words for another model, for another of the same name, from somebody else."""
    sent = BINARY + bytes(8)
    length = f"inference-header-content-length: {len(BINARY)}"
    key = ApiKey(key="mine", name="me", priorities=PriorityRange(2, 5))
    with running(api_key=("secret",), keys=(key,)) as server:
        for secret, path, status in (
            ("secret", INFER, 200),
            ("mine", INFER, 200),
            ("secret", INFER, 200),
            ("secret", INFER.replace("FP32", "INT32"), 400),
            ("mine", INFER.replace("FP32", "FP64"), 400),
            ("secret", INFER, 200),
        ):
            assert ask(server.url, request(path, sent, length, f"x-api-key: {secret}")).status == status
            if status == 200:
                lookup = server.models["FP32"].seen
                assert lookup is not None
                assert lookup.priority == (2 if secret == "mine" else 0)
        model = server.models["FP32"]
        assert model.info is not None
        [spec] = model.info.inputs
        model.info = msgspec.structs.replace(model.info, inputs=(replace(spec, dims=(1, 3)),))
        refused = ask(server.url, request(INFER, sent, length, "x-api-key: secret"))
        assert refused.status == 400
        assert b"unexpected shape" in seen(refused)[2]


@pytest.mark.parametrize("error", [UNAVAILABLE, InferenceError("ä" * 2000, Code.INTERNAL), ValueError("a defect")])
@pytest.mark.parametrize(("path", "model"), [(INFER, "FP32"), (PREDICT, "json")])
def test_errors_are_the_same(
    hosted_url: str, models: Models, caplog: pytest.LogCaptureFixture, error: InferenceError, path: str, model: str
) -> None:
    models[model].error = error
    with caplog.at_level(logging.INFO):
        direct, through = (seen(ask(hosted_url, request(path, BODY, *more))) for more in ((), (THROUGH,)))
        eventually(lambda: len([each for each in caplog.records if each.name == "octavo.access"]) == 2)
    assert direct == through
    assert direct[0] >= 500
    without_time = [each.message.split(" ms")[1] for each in caplog.records if each.name == "octavo.access"]
    assert without_time[0] == without_time[1]
    failures = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len({each.message for each in failures}) == len(failures) / 2 == isinstance(error, ValueError)


def test_what_is_unusual_goes_through_the_application(hosted_url: str, models: Models, begun: list[bool]) -> None:
    assert ask(hosted_url, request()).status == 200
    assert begun == [True]
    chunked = request().replace(f"content-length: {len(BODY)}".encode(), b"transfer-encoding: chunked")
    for sent in (
        request(INFER, BODY, THROUGH),
        request(INFER, BODY, "connection: close"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(INFER, BODY, "connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(INFER, BODY, "accept: a", "accept: b"),
        request(f"{INFER}?"),
        chunked.replace(BODY, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    ):
        begun.clear()
        assert ask(hosted_url, sent).status == 200
        assert begun == [False]
    with connect(hosted_url) as connection:
        head = request(INFER, BODY, "expect: 100-continue")[: -len(BODY)]
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection, "POST").status == 200


def test_requests_of_both_ways_are_answered_in_order(hosted_url: str, models: Models, begun: list[bool]) -> None:
    sent = [
        request(INFER, BODY.replace(b'{"inputs"', b'{"id": "%d", "inputs"' % number), *(THROUGH,) * (number % 3 == 1))
        for number in range(30)
    ]
    answers = b""
    with connect(hosted_url) as connection:
        connection.sendall(b"".join(sent))
        while answers.count(b'"data":[1.5]') < len(sent):
            answers += connection.recv(65536)
        connection.sendall(sent[0])
        assert read_answer(connection, "POST").status == 200
    assert re.findall(rb'"id":"(\d+)"', answers) == [b"%d" % number for number in range(len(sent))]
    assert (begun[0], begun[-1]) == (True, True)  # one that waits for another goes through the application


def test_a_body_may_come_in_pieces(hosted_url: str, begun: list[bool]) -> None:
    with connect(hosted_url) as connection:
        for byte in request():
            connection.send(bytes([byte]))
        assert read_answer(connection, "POST").status == 200
    assert begun == [True]


def test_a_client_that_leaves_before_its_request_is_complete(
    hosted_url: str, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "octavo.access"):
        with connect(hosted_url) as connection:
            connection.sendall(request()[:-1])
        eventually(lambda: f"{INFER} {CLIENT_GONE}" in caplog.text)
    assert caplog.text.rstrip().endswith("request me: The client left before its request was complete.")
    assert ask(hosted_url, request()).status == 200


@pytest.mark.parametrize(("path", "name"), [(INFER, "FP32"), (PREDICT, "json")])
def test_a_client_that_leaves_is_taken_out_of_the_queue(
    hosted_url: str, models: Models, path: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = models[name]
    model.hold, cancelled = asyncio.Event(), model.cancelled
    with caplog.at_level(logging.INFO, "octavo.access"):
        with connect(hosted_url) as connection:
            connection.sendall(request(path))
            eventually(lambda: model.waiting == 1)
        eventually(lambda: model.cancelled == cancelled + 1)
        eventually(lambda: f"{path} {CLIENT_GONE}" in caplog.text)
    assert model.pending == 0


@dataclass
class Running:
    """A server with the models, in a thread."""

    url: str
    http: HttpServer
    server: Server
    models: Models
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Running]:
    made, listener, ready = _make(), bind("127.0.0.1", 0), threading.Event()
    deployments = Deployments()
    deployments.offer(made)
    own = ServerSettings(**settings)
    http = HttpServer(own, create_app(own, deployments), listener, on_started=ready.set)
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    loop = runner.get_loop()
    thread = threading.Thread(target=lambda: runner.run(http.run()))
    found = Running(address_of(listener), http, http._server, {each.name: fake(each) for each in made}, loop, thread)
    thread.start()
    try:
        assert ready.wait(10)
        yield found
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(lambda: (http.stop(0), http.stop(0)))
        thread.join()
        runner.close()


def test_keys_and_what_they_may_ask_for(begun: list[bool]) -> None:
    key = ApiKey(key="mine", name="me", priorities=PriorityRange(2, 5))
    urgent = BODY[:-1] + b', "parameters": {"priority": 1}}'
    with running(api_key=("secret",), keys=(key,)) as server:
        for fields, body, status in (
            ((), BODY, 401),
            (("authorization: Bearer wrong",), BODY, 401),
            (("authorization: Bearer secret",), BODY, 200),
            (("x-api-key: mine",), BODY, 200),
            (("x-api-key: mine",), urgent, 400),
            (("x-api-key: secret",), urgent, 200),
        ):
            direct = seen(ask(server.url, request(INFER, body, *fields)))
            assert direct[0] == status
            assert direct == seen(ask(server.url, request(INFER, body, *fields, THROUGH)))
            if body is BODY and status == 200:
                lookup = server.models["FP32"].seen
                assert lookup is not None
                assert lookup.priority == (2 if "mine" in fields[0] else 0)
    assert begun == [False, False] * 2 + [True, False] * 4


def test_large_bodies_are_bounded_all_together() -> None:
    size = 4 * SMALL_BYTES
    with running(max_tensor_body_bytes=size) as server, contextlib.ExitStack() as opened:
        free = server.server.tensor_bodies._free
        part = request(INFER, bytes(size))[:-1]
        late: list[socket.socket] = []
        for _ in range(2 * TENSOR_BODIES_HELD):  # each is counted from 256 KiB on
            connection = opened.enter_context(connect(server.url))
            connection.sendall(part)
            late = select.select([connection], [], [], 0.1)[0]
            if late:
                break
        refused = read_answer(late[0], "POST")
        assert refused.status == 503
        assert "all the large request bodies" in json.loads(seen(refused)[2])["error"]
        late[0].sendall(b"\0" + request())  # the rest is read, and the connection goes on
        assert read_answer(late[0], "POST").status == 200
        opened.close()
        eventually(lambda: server.server.tensor_bodies._free == free)


def test_a_head_that_is_known_with_a_body_that_there_is_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.inference.body.SMALL_BYTES", 8)
    with running(keep_alive_timeout=1) as server:
        assert ask(server.url, request()).status == 200
        monkeypatch.setattr(server.server.tensor_bodies, "_free", 0)
        with connect(server.url) as connection:
            connection.sendall(request())
            assert read_answer(connection, "POST").status == 503
            monkeypatch.undo()
            connection.sendall(request())
            assert read_answer(connection, "POST").status == 200
            monkeypatch.setattr("octavo.server.inference.body.SMALL_BYTES", 8)
            monkeypatch.setattr(server.server.tensor_bodies, "_free", 0)
            connection.sendall(request())
            assert read_answer(connection, "POST").status == 503
            assert connection.recv(1) == b""  # and it is not kept for ever


def test_a_body_that_does_not_go_on(caplog: pytest.LogCaptureFixture) -> None:
    with running(request_body_timeout=0.3) as server, caplog.at_level(logging.INFO), connect(server.url) as connection:
        connection.sendall(request()[:-1])
        answer = read_answer(connection, "POST")
        assert answer.status == 408
        assert connection.recv(1) == b""
        eventually(lambda: f"{INFER} {CLIENT_GONE}" in caplog.text)


def test_the_end_of_the_server(begun: list[bool]) -> None:
    """What runs ends as if nothing had happened, and new requests are refused."""
    with running() as server, connect(server.url) as first, connect(server.url) as second:
        model = server.models["FP32"]
        model.hold = held = asyncio.Event()
        first.sendall(request())
        eventually(lambda: model.waiting == 1)
        server.loop.call_soon_threadsafe(server.http.stop, 20)
        eventually(lambda: server.server.in_flight.draining)
        second.sendall(request())
        refused = read_answer(second, "POST")
        assert (refused.status, refused.getheader("retry-after")) == (503, "1")
        server.loop.call_soon_threadsafe(held.set)
        assert read_answer(first, "POST").status == 200
        server.thread.join(10)
        assert not server.thread.is_alive()
    assert begun == [True, False]


def test_a_second_signal_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), running() as server, connect(server.url) as connection:
        server.models["FP32"].hold = asyncio.Event()
        connection.sendall(request())
        eventually(lambda: server.models["FP32"].waiting == 1)
        server.loop.call_soon_threadsafe(lambda: server.http.stop(20))
        server.loop.call_soon_threadsafe(lambda: server.http.stop(20))
        answer = read_answer(connection, "POST")
        assert answer.status == 503
        assert "shutting down" in json.loads(seen(answer)[2])["error"]
        server.thread.join(10)
        assert server.models["FP32"].cancelled == 1
    assert len([each for each in caplog.records if each.name == "octavo.access"]) == 1


def test_a_client_that_does_not_read_and_leaves(caplog: pytest.LogCaptureFixture) -> None:
    size = 2**24
    head = BINARY.replace(b"[1, 2]", b"[1, %d]" % (size // 4)).replace(b": 8}", b": %d}" % size)
    with running() as server, caplog.at_level(logging.INFO, "octavo.access"):
        with connect(server.url) as connection:
            connection.sendall(request(INFER, head + bytes(size), f"inference-header-content-length: {len(head)}"))
            assert connection.recv(12) == b"HTTP/1.1 200"
            assert len(server.server.in_flight._work) == 1
        eventually(lambda: not server.server.in_flight._work)
        eventually(lambda: f"{INFER} 200" in caplog.text)


@pytest.mark.parametrize("sent", [SAME["json"], SAME["binary"], SAME["a prediction"], SAME["no json"]])
def test_nothing_is_left_for_the_garbage_collector(sent: bytes) -> None:
    """It comes late, and until then what a cycle holds is held: blocks of a model's process, say."""
    with running() as server, connect(server.url) as connection:
        for _ in range(3):
            connection.sendall(sent)
            read_answer(connection, "POST")
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                connection.sendall(sent)
                while not connection.recv(1 << 16).endswith((b"]}", b"}", bytes(8))):
                    pass
            assert gc.collect() < 100
        finally:
            gc.enable()


def test_a_connection_that_waits_keeps_no_result() -> None:
    with running() as server, connect(server.url) as connection:
        connection.sendall(request())
        assert read_answer(connection, "POST").status == 200

        def is_held() -> bool:
            return any(type(each) is Pending and each.loop is server.loop for each in gc.get_objects())

        eventually(lambda: not is_held())
