"""Bodies that are large, compressed, damaged or many."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest

from octavo.server import body, context
from octavo.server.settings import ServerSettings
from tests.server.conftest import eventually
from tests.server.fake import CONTEXT, FakeEngine, running, served
from tests.server.raw import connect, read_answer

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "größer"}], "max_tokens": 2}).encode()
JSON = {"content-type": "application/json"}
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def limited(_engine: FakeEngine) -> Iterator[httpx.Client]:
    settings = ServerSettings(max_body_bytes=LIMIT)
    with running(settings, served(_engine)) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def deflate(data: bytes) -> bytes:
    return zlib.compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": deflate,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACKERS)
def test_compressed_bodies(limited: httpx.Client, engine: FakeEngine, encoding: str) -> None:
    packed = PACKERS[encoding](BODY)
    for content in (packed, iter([packed[:1], packed[1:30], packed[30:]])):
        answer = limited.post(CHAT, content=content, headers=JSON | {"content-encoding": encoding})
        assert answer.status_code == 200, answer.text
    assert engine.tokenizer.decode(engine.requests[0].prompt_token_ids).count("größer") == 1


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "nonsense"])
def test_unknown_encodings_are_refused_by_name(limited: httpx.Client, engine: FakeEngine, encoding: str) -> None:
    answer = limited.post(CHAT, content=BODY, headers=JSON | {"content-encoding": encoding})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert encoding in answer.json()["error"]["message"]
    assert "gzip, deflate" in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda packed: packed[:-1], "ends too early"),
        (lambda packed: packed[: len(packed) // 2], "ends too early"),
        (lambda packed: packed[:1], "ends too early"),
        (lambda packed: packed + b"x", "goes on after the end"),
        (lambda packed: packed + packed, "goes on after the end"),
        (lambda packed: b"x" + packed, "incorrect header"),
        (lambda packed: packed[:-6] + b"\0" + packed[-5:], "cannot be unpacked"),
        (lambda packed: BODY, "incorrect header"),
        (lambda packed: b"", "empty"),
    ],
    ids=["byte", "half", "most", "garbage", "twice", "before", "inside", "plain", "nothing"],
)
def test_damaged_bodies_are_the_clients_mistake(
    limited: httpx.Client, encoding: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    packed = damage(PACKERS[encoding](BODY))
    for content in (packed, iter([packed[:7], packed[7:]])):
        answer = limited.post(CHAT, content=content, headers=JSON | {"content-encoding": encoding})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]


def test_what_is_packed_counts_unpacked(limited: httpx.Client, engine: FakeEngine) -> None:
    fits = BODY + b" " * (LIMIT - len(BODY))
    for data, status in ((fits, 200), (fits + b" ", 413)):
        answer = limited.post(CHAT, content=gzip.compress(data), headers=JSON | {"content-encoding": "gzip"})
        assert answer.status_code == status
    bomb = gzip.compress(b" " * 100_000_000, 9)
    assert len(bomb) < LIMIT
    started = time.monotonic()
    assert limited.post(CHAT, content=bomb, headers=JSON | {"content-encoding": "gzip"}).status_code == 413
    assert time.monotonic() - started < 10


def values(count: int, name: bytes = b"prompt", more: bytes = b"") -> bytes:
    return b'{"%b":[%b1]%b}' % (name, b"1," * (count - 1), more)


def test_what_is_no_prompt_has_no_context(http: httpx.Client) -> None:
    for path, content in (
        ("/detokenize", values(300_000, b"tokens")),
        ("/v1/completions", values(300_000, b"prompt", b',"truncate_prompt_tokens":5')),
        ("/v1/completions", values(300_000, b"stop_token_ids")),
    ):
        answer = http.post(path, content=content, headers=JSON)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert "an array of 300,000 values, which is too many" in error["message"]
        assert (error["code"], f"'{error['param']}'" in error["message"]) == (None, True)


def test_bodies_of_too_many_values(http: httpx.Client, engine: FakeEngine) -> None:
    for content, words in (
        (values(2**20 + 10), "1,048,576 values"),
        (b'{"messages":[%b{}]}' % (b"{}," * 2**17), "131,072 objects"),
    ):
        answer = http.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 413
        assert words in answer.json()["error"]["message"]
    answer = http.post("/v1/completions", content=values(10**6), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens. However, 'prompt' has 1,000,000" in answer.text
    many = {"messages": [{"role": "user", "content": "x"}] * (2**15 + 1)}
    answer = http.post(CHAT, json=many)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


def test_a_wrong_field_of_a_large_body_is_named(http: httpx.Client, engine: FakeEngine) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}] * 20_000
    answer = http.post(CHAT, json={"messages": [*messages, {"role": "king", "content": "x"}]})
    assert answer.json()["error"]["param"] == "messages[20000].role"
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "the quick brown fox " * 20_000}),
        ("/v1/completions", {"prompt": ["short", "x" * 400_000]}),
        (CHAT, {"messages": [{"role": "user", "content": "the quick brown fox "}] * 20_000}),
        ("/tokenize", {"prompt": "the quick brown fox " * 500_000}),
    ],
)
def test_what_is_far_too_long_is_refused_without_being_tokenised(
    http: httpx.Client, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    error = http.post(path, json=fields).json()["error"]
    assert "at least" in error["message"]
    assert error["param"] in fields


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": [1] * 250_000},
        {"stop_token_ids": ["x"] * 250_000},
        {"tools": [1] * 250_000},
        {"modalities": [1] * 250_000},
        {"logit_bias": {f"x{n}": "x" for n in range(50_000)}},
    ],
)
def test_the_first_mistake_of_very_many_is_told(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """And no list of all of them made, during which nothing else would run."""
    counts = []
    name = body.invalid_field
    monkeypatch.setattr(body, "invalid_field", lambda errors, value: counts.append(len(errors)) or name(errors, value))
    answer = http.post(CHAT, json={"messages": MESSAGES[:1], **fields})
    assert answer.status_code == 400
    assert counts == [1]


MESSAGES = [{"role": "user", "content": "hi"}] * 2**15
LARGE = {
    "ids": ("/v1/completions", values(2**20 - 10)),
    "messages": (CHAT, orjson.dumps({"messages": MESSAGES, "temperature": -1})),
}
"""All are refused in the end, for their length or for a field."""


@pytest.mark.parametrize("kind", LARGE)
def test_probes_are_answered_while_large_bodies_are_read(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, content = LARGE[kind]
    reading, go_on = threading.Event(), threading.Event()
    parse = body.JsonRequest._parse

    def held(request: body.JsonRequest, data: bytes) -> Any:
        reading.set()
        assert go_on.wait(60)
        return parse(request, data)

    monkeypatch.setattr(body.JsonRequest, "_parse", held)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, path, content=content, headers=JSON)
        try:
            assert reading.wait(60)
            assert http.get("/health").status_code == 200
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result().status_code == 400


def test_many_large_bodies_at_once_are_bounded(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished ones are held up to a limit; beyond it large bodies are refused, and small ones are not."""
    monkeypatch.setattr(context, "LARGE_BODIES_HELD", 3)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {LIMIT}\r\n\r\n"
    )
    large = BODY + b" " * (LIMIT - len(BODY) - 1)
    with running(ServerSettings(max_body_bytes=LIMIT), served(engine)) as url:
        clients = [connect(url) for _ in range(3)]
        for client in clients:
            client.sendall(head.encode() + large)

        def refused() -> bool:
            answer = httpx.post(url + CHAT, content=large, headers=JSON)
            return answer.status_code == 503 and answer.headers["retry-after"] == "1"

        eventually(refused)
        assert httpx.post(url + CHAT, content=BODY, headers=JSON).status_code == 200
        clients.pop().close()
        eventually(lambda: httpx.post(url + CHAT, content=large, headers=JSON).status_code == 200)
        for client in clients:
            client.sendall(b" ")
            assert read_answer(client).status == 200
            client.close()
        for _ in range(5):
            assert httpx.post(url + CHAT, content=large, headers=JSON).status_code == 200
