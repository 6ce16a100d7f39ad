"""Event streams byte by byte, and when they begin."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from octavo.engine.request import Refusal, RequestRefused
from octavo.server.settings import ServerSettings
from octavo.text import Detokenizer
from tests.server.conftest import eventually
from tests.server.fake import MODEL, FakeEngine, running, served
from tests.server.raw import raw_stream
from tests.server.sse import events, text_of

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def test_headers(http: httpx.Client) -> None:
    headers = http.post(CHAT, json=BODY).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"]


def test_chunks(http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Paris."
    plain = events(http.post(CHAT, json=BODY).text)
    assert plain[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in plain[1:-1])
    assert plain[-1]["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert {chunk["object"] for chunk in plain} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in plain)
    text = events(http.post("/v1/completions", json={"prompt": "hi", "stream": True}).text)
    assert {chunk["object"] for chunk in text} == {"text_completion"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in text[:-1]] == [None] * (len(text) - 1)
    final = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert text[-1]["choices"] == [final]


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_usage(http: httpx.Client, engine: FakeEngine, route: str) -> None:
    body = {"prompt": "hi", **BODY, "n": 2, "max_tokens": 3, "ignore_eos": True}
    *chunks, last = events(http.post(f"/v1/{route}", json=body | {"stream_options": {"include_usage": True}}).text)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    prompt = len(engine.requests[-1].prompt_token_ids)
    assert last["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": prompt // 16 * 16},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, final = events(http.post(f"/v1/{route}", json=body | {"stream_options": options}).text)
    assert final["usage"] == last["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 6


SEPARATORS = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj\nk"
"""Everything at which str.splitlines splits, and with it the line readers of many clients."""


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        (CHAT, {}),
        (CHAT, {"logprobs": True, "top_logprobs": 20}),
        (CHAT, {"stop": ["\x85g\u2028"]}),
        ("/v1/completions", {"prompt": SEPARATORS, "echo": True, "logprobs": 5, "max_tokens": 99}),
    ],
    ids=["text", "logprobs", "stop-reason", "echo"],
)
def test_events_have_no_line_separators(
    http: httpx.Client, engine: FakeEngine, path: str, extra: dict[str, object]
) -> None:
    engine.reply = lambda prompt, index: SEPARATORS
    raw = http.post(path, json=BODY | extra).text
    assert raw.splitlines() == raw[:-1].split("\n")
    said = SEPARATORS.partition("\x85" if "stop" in extra else "?")[0]
    assert text_of(events(raw)) == (SEPARATORS + said if "echo" in extra else said)


def test_errors_in_streams_have_no_line_separators(http: httpx.Client, engine: FakeEngine) -> None:
    engine.fail_after, engine.failure_reason = 1, "it was lost\x85\u2028\u2029"
    raw = http.post(CHAT, json=BODY).text
    assert raw.splitlines() == raw[:-1].split("\n")
    assert "it was lost" in events(raw)[-1]["error"]["message"]


def test_nothing_is_sent_before_the_first_token(url: str, engine: FakeEngine) -> None:
    engine.hold = True
    with raw_stream(url, BODY) as connection:
        eventually(lambda: bool(engine.ledger))
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        engine.hold = False
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        eventually(lambda: not engine.ledger)


def test_role_and_first_text_come_in_one_piece(url: str, engine: FakeEngine) -> None:
    """A client that times the first chunk times the first token."""
    engine.step_seconds = 0.05
    with raw_stream(url, BODY) as connection:
        received = b""
        while b"\r\n\r\ndata" not in received and b"data: " not in received:
            received += connection.recv(65536)
        body = received.split(b"\r\n\r\n", 1)[1]
        size, rest = body.split(b"\r\n", 1)
        first_piece = rest[: int(size, 16)]
        assert first_piece.count(b"data: ") == 2
        assert b'"role":"assistant"' in first_piece
        assert b'{"content":"I"}' in first_piece


def test_one_piece_per_step(url: str, engine: FakeEngine) -> None:
    with raw_stream(url, {**BODY, "n": 4, "max_tokens": 5, "ignore_eos": True}) as connection:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    pieces = []
    rest = received.split(b"\r\n\r\n", 1)[1]
    while (cut := rest.split(b"\r\n", 1))[0] != b"0":
        size = int(cut[0], 16)
        pieces.append(cut[1][:size])
        rest = cut[1][size + 2 :]
    assert len(pieces) == 6  # five steps of four choices, and [DONE]
    assert pieces[-1] == b"data: [DONE]\n\n"


def test_pings_while_the_engine_is_silent(engine: FakeEngine) -> None:
    with running(ServerSettings(sse_keep_alive_interval=0.05), served(engine)) as url:
        engine.step_seconds = 0.12
        raw = httpx.post(url + CHAT, json=BODY | {"max_tokens": 4}).text
    assert raw.startswith(": ping\n\n")
    assert 3 <= raw.count(": ping\n\n") <= 12
    assert len(events(raw)) == 6


@pytest.fixture(scope="module")
def pinging(_engine: FakeEngine) -> Iterator[str]:
    with running(ServerSettings(sse_keep_alive_interval=0.05), served(_engine)) as url:
        yield url


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        piece = connection.recv(65536)
        assert piece, f"the connection was closed after {received!r}"
        received += piece
    return received


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/generate"])
def test_pings_while_a_request_waits(pinging: str, engine: FakeEngine, path: str) -> None:
    """In the queue, and while a long prompt is computed."""
    engine.hold = True
    body = BODY | ({} if path == CHAT else {"prompt": "hi"})
    with raw_stream(pinging, body, path) as connection:
        received = read_until(connection, b": ping\n\n")
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"data: " not in received
        engine.hold = False
        rest = read_until(connection, b"data: [DONE]\n\n")
    assert rest.count(b"data: ") > 3


def test_pings_wait_until_all_prompts_are_accepted(pinging: str, engine: FakeEngine) -> None:
    engine.hold = engine.silent = True
    with raw_stream(pinging, {"prompt": ["a", "b"], "stream": True}, "/v1/completions") as connection:
        eventually(lambda: len(engine.ledger) == 2)
        connection.settimeout(0.3)
        for stream in list(engine.ledger.values()):
            with pytest.raises(TimeoutError):
                connection.recv(1)
            engine.call(stream.accepted.set)
        assert b": ping" in read_until(connection, b": ping\n\n")


def test_a_refusal_has_its_status_however_late_it_comes(pinging: str, engine: FakeEngine) -> None:
    engine.hold = engine.silent = True
    with raw_stream(pinging, BODY) as connection:
        eventually(lambda: bool(engine.ledger))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        [stream] = engine.ledger.values()
        engine.call(stream.close, RequestRefused(Refusal.OVERLOADED, "the queue is full", 1.0))
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")


def test_an_error_after_a_ping_is_an_event(pinging: str, engine: FakeEngine) -> None:
    engine.hold, engine.fail_after = True, 0
    with raw_stream(pinging, BODY) as connection:
        received = read_until(connection, b": ping\n\n")
        engine.hold = False
        received += read_until(connection, b"data: [DONE]\n\n")
    assert b'data: {"error":{"message":"The engine failed: it was lost."' in received
    assert received.startswith(b"HTTP/1.1 200 OK")


def test_no_pings_when_switched_off(engine: FakeEngine) -> None:
    with running(ServerSettings(sse_keep_alive_interval=0), served(engine)) as url:
        engine.step_seconds = 0.05
        assert "ping" not in httpx.post(url + CHAT, json=BODY | {"max_tokens": 3}).text


def test_a_bug_in_the_middle_ends_the_stream_with_an_error(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Detokenizer.push

    def broken(self: Detokenizer, token: int) -> str:
        text = push(self, token)
        if text == "d":
            raise RuntimeError("secret")
        return text

    with monkeypatch.context() as patch:
        patch.setattr(Detokenizer, "push", broken)
        raw = http.post(CHAT, json=BODY).text
    assert events(raw)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in raw
    assert engine.aborts == {None: 1}


def test_slow_readers_do_not_stop_others(url: str, http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "x" * 400
    slow = [raw_stream(url, {**BODY, "n": 64}) for _ in range(3)]
    eventually(lambda: len(engine.ledger) == 3)
    assert http.post(CHAT, json=BODY | {"max_tokens": 10}).status_code == 200
    assert len(engine.ledger) == 3
    for connection in slow:
        connection.close()
    eventually(lambda: not engine.ledger)


def test_model_is_named_in_every_chunk(http: httpx.Client) -> None:
    assert {chunk["model"] for chunk in events(http.post(CHAT, json=BODY | {"model": "tiny"}).text)} == {MODEL}
