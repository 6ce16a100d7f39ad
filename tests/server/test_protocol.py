"""Below the routes: what clients may send, how much of it, and for how long."""

import contextlib
import http.client
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from octavo.server.settings import ServerSettings
from tests.server.conftest import eventually
from tests.server.fake import FakeEngine, running, served
from tests.server.raw import connect, raw_stream, read_answer

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


def head(*fields: str, line: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    """A request's head."""
    return "\r\n".join([line, "host: localhost", "content-type: application/json", *fields, "", ""]).encode()


LENGTH = f"content-length: {len(BODY)}"
CHUNKED = "transfer-encoding: chunked"
CHUNKS = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])


def error_of(answer: http.client.HTTPResponse) -> dict[str, Any]:
    """The error object of a response."""
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body)["error"]  # type: ignore[attr-defined, no-any-return]


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has nothing more to say, and says so."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Of the answers to pipelined requests, as far as the server gives any."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while received.count(b'"status"') < count and (more := connection.recv(65536)):
            received += more
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


UPGRADES = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk"),
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "tls": ("connection: upgrade", "upgrade: TLS/1.2"),
    "unknown": ("CONNECTION: UPGRADE", "UPGRADE: foo, bar"),
    "no-connection": ("upgrade: h2c",),
    "no-upgrade": ("connection: upgrade",),
}  # fmt: skip


@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("framing", [LENGTH, CHUNKED])
@pytest.mark.parametrize("packets", ["one", "two", "bytes"])
def test_an_offer_to_upgrade_is_ignored(
    url: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture, fields: tuple[str, ...], framing: str, packets: str
) -> None:
    first, second = head(framing, *fields), BODY if framing == LENGTH else CHUNKS
    sent = {"one": [first + second], "two": [first, second]}.get(packets) or [bytes([byte]) for byte in first + second]
    with caplog.at_level(logging.INFO), connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the connection is kept
            for packet in sent:
                connection.sendall(packet)
                if packets == "two":
                    time.sleep(0.01)  # so that they arrive one by one; the test holds without it
            answer = read_answer(connection)
            assert answer.status == 200, answer.body  # type: ignore[attr-defined]
            assert answer.headers["upgrade"] is None
        connection.sendall(HEALTH)
        assert read_answer(connection).status == 200
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


def test_pipelined_offers_to_upgrade(url: str, engine: FakeEngine) -> None:
    with connect(url) as connection:
        request = head(*UPGRADES["h2c"], "content-length: 2", line="GET /health HTTP/1.1") + b"{}"
        connection.sendall(request * 20 + HEALTH)
        assert statuses(connection, 21) == [200] * 21


def test_a_websocket_handshake_is_a_request_like_others(url: str, engine: FakeEngine) -> None:
    with connect(url) as connection:
        connection.sendall(head(*UPGRADES["websocket"], line="GET /version HTTP/1.1"))
        assert read_answer(connection).status == 200


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00", 505, "HTTP/1.1"),
        (b"GET / HTTP/3.0\r\nhost: localhost\r\n\r\n", 505, "HTTP/1.1"),
        (b"GET / HTTP/1.1\nhost: localhost\n\n", 400, "CRLF"),
        (b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n", 501, "CONNECT"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "Invalid HTTP"),
        (b"GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "Invalid HTTP"),
        (b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "Invalid HTTP"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx : y\r\n\r\n", 400, "Invalid HTTP"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host header; this one has 0"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\n\r\n", 400, "Host header; this one has 2"),
        (head(CHUNKED) + b"zz\r\n", 400, "Invalid HTTP"),
        (head("content-length: 5", CHUNKED) + b"0\r\n\r\n", 400, "Invalid HTTP"),
        (head("content-length: -5"), 400, "Invalid HTTP"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_words(
    url: str, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, words: str
) -> None:
    with caplog.at_level(logging.INFO):
        for packets in ([sent], [bytes([byte]) for byte in sent]):
            with connect(url) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for packet in packets:
                    connection.sendall(packet)
                answer = read_answer(connection)
                assert answer.status == status
                assert words in error_of(answer)["message"]
                assert answer.headers["connection"] == "close"
                assert is_closed(connection)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET /health HTTP/1.0", ()),
        ("GET http://localhost/health HTTP/1.1", ("host: localhost",)),
        ("GET HTTP://127.0.0.1:80/health?x=1 HTTP/1.1", ("host: else.where",)),
        ("GET /health HTTP/1.1", ("HOST:localhost",)),
    ],
)
def test_forms_of_a_target(url: str, line: str, fields: tuple[str, ...]) -> None:
    with connect(url) as connection:
        connection.sendall("\r\n".join([line, *fields, "", ""]).encode())
        assert read_answer(connection).status == 200


LARGE = b"x: " + b"y" * 140_000 + b"\r\n"
MANY = b"".join(b"x-%d: y\r\n" % number for number in range(300))
SMALLER = b"".join(b"x-%d: %b\r\n" % (number, b"y" * 1000) for number in range(100))


@pytest.mark.parametrize(
    ("start", "endless", "words"),
    [
        (b"GET /", b"a" * 70_000, "65,536 bytes"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", LARGE, "65,536 bytes"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", SMALLER, "65,536 bytes"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", MANY, "256 headers"),
        (b"", b"\r\n" * 50_000, "65,536 bytes"),
        (head(CHUNKED) + b"1\r\n{\r\n0\r\n", LARGE, "65,536 bytes"),
        (head(CHUNKED) + b"1\r\n{\r\n0\r\n", SMALLER, "65,536 bytes"),
        (head(CHUNKED) + b"1\r\n{\r\n1;", b"extension" * 20_000, "65,536 bytes"),
    ],
    ids=["target", "header", "headers", "many", "nothing", "trailer", "trailers", "extension"],
)
def test_what_is_no_body_is_bounded(url: str, engine: FakeEngine, start: bytes, endless: bytes, words: str) -> None:
    """However it comes: all at once, or in pieces that never end."""
    for pieces in ([endless], [endless[at : at + 9000] for at in range(0, len(endless), 9000)]):
        with connect(url) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(start)
            for piece in pieces:
                connection.sendall(piece)
            answer = read_answer(connection)
            assert answer.status == 431
            assert words in error_of(answer)["message"]
            assert is_closed(connection)


def test_trailers_are_dropped(url: str, engine: FakeEngine) -> None:
    """They come after everything was checked that headers say."""
    with connect(url) as connection:
        trailers = b"x-request-id: late\r\nauthorization: Bearer x\r\n\r\n"
        connection.sendall(head(CHUNKED) + CHUNKS.removesuffix(b"\r\n") + trailers)
        answer = read_answer(connection)
        assert answer.status == 200
        assert answer.headers["x-request-id"] != "late"


def test_many_pipelined_requests(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(HEALTH * 50)
        assert statuses(connection, 50) == [200] * 50
        connection.sendall(HEALTH * 5000)
        assert len(statuses(connection, 5000)) < 5000


def test_an_error_is_never_written_into_another_answer(url: str, engine: FakeEngine) -> None:
    engine.hold = True
    with raw_stream(url, json.loads(BODY) | {"stream": True}) as connection:
        eventually(lambda: bool(engine.ledger))
        connection.sendall(b"garbage\r\n\r\n")
        assert is_closed(connection)
    eventually(lambda: not engine.ledger)


@pytest.fixture(scope="module")
def hasty(_engine: FakeEngine) -> Iterator[str]:
    """A server without patience."""
    settings = ServerSettings(request_head_timeout=0.3, request_body_timeout=0.3, keep_alive_timeout=1)
    with running(settings, served(_engine)) as url:
        yield url


def test_a_connection_without_a_request_is_closed(hasty: str) -> None:
    with connect(hasty) as connection:
        assert is_closed(connection)


def test_an_idle_connection_is_closed(hasty: str) -> None:
    with connect(hasty) as connection:
        connection.sendall(HEALTH)
        assert read_answer(connection).status == 200
        assert is_closed(connection)


def test_a_connection_that_was_answered_early_is_closed_when_idle(hasty: str) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"POST /nope HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n")
        assert read_answer(connection).status == 404
        connection.sendall(b"x")
        assert is_closed(connection)


def dribble(connection: socket.socket, data: bytes) -> http.client.HTTPResponse:
    """Send something byte by byte, slowly, until the server has had enough."""
    connection.settimeout(0.02)
    for byte in data:
        connection.sendall(bytes([byte]))
        with contextlib.suppress(TimeoutError):
            if connection.recv(1, socket.MSG_PEEK):
                break
    else:
        pytest.fail("the server waited for all of it")
    connection.settimeout(10)
    return read_answer(connection)


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "kept"])
def test_a_head_that_never_ends_is_given_up(hasty: str, before: bytes) -> None:
    with connect(hasty) as connection:
        if before:
            connection.sendall(before)
            assert read_answer(connection).status == 200
        answer = dribble(connection, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 1000)
        assert answer.status == 408
        assert "head was not complete after 0.3 seconds" in error_of(answer)["message"]
        assert is_closed(connection)


def test_empty_lines_that_never_end_are_given_up(hasty: str) -> None:
    with connect(hasty) as connection, contextlib.suppress(ConnectionError, TimeoutError):
        connection.settimeout(0.02)
        for _ in range(1000):
            connection.sendall(b"\r\n")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                return
        pytest.fail("the server listened to all of them")


@pytest.mark.parametrize("framing", ["content-length: 1000", CHUNKED])
def test_a_body_that_never_ends_is_given_up(
    hasty: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture, framing: str
) -> None:
    with caplog.at_level(logging.INFO), connect(hasty) as connection:
        connection.sendall(head(framing))
        answer = dribble(connection, b" " * 1000 if framing != CHUNKED else b"1\r\n \r\n" * 200)
        assert answer.status == 408
        assert "body did not go on for 0.3 seconds" in error_of(answer)["message"]
        assert is_closed(connection)
        eventually(lambda: any(" 499 " in message for message in caplog.messages))
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


def test_the_rest_of_a_refused_body_is_awaited_for_a_while(hasty: str) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"POST /nope HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n")
        assert read_answer(connection).status == 404
        assert is_closed(connection)


def test_a_slow_but_steady_body_is_awaited(hasty: str, engine: FakeEngine) -> None:
    body = BODY + b" " * 200_000
    with connect(hasty) as connection:
        connection.sendall(head(f"content-length: {len(body)}"))
        for start in range(0, len(body), 10_000):
            connection.sendall(body[start : start + 10_000])
            time.sleep(0.1)
        assert read_answer(connection).status == 200


def test_a_slow_answer_is_no_slow_request(hasty: str, engine: FakeEngine) -> None:
    engine.step_seconds = 1.5
    assert httpx.post(f"{hasty}/v1/chat/completions", json=json.loads(BODY) | {"max_tokens": 1}).status_code == 200
