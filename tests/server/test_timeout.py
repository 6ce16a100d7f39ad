"""A deadline: what was generated until then is the answer, and the engine hears that no more is wanted."""

from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from octavo.grammar.compiler import GrammarCompiler
from tests.server.conftest import eventually
from tests.server.fake import FakeEngine
from tests.server.sse import events, text_of
from tests.server.test_operations import metric

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
ROUTES = [
    ("/v1/chat/completions", CHAT, 1),
    ("/v1/chat/completions", CHAT | {"n": 3}, 1),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "stop": ["never"]}, 1),
    ("/v1/completions", {"prompt": ["one", "two"], "n": 2, "max_tokens": 400}, 2),
    ("/v1/completions", {"prompt": "one", "max_tokens": 400, "echo": True, "logprobs": 1}, 1),
]


def ends(choices: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(choice["finish_reason"], choice["stop_reason"]) for choice in choices if choice["finish_reason"]}


@pytest.fixture
def endless(engine: FakeEngine) -> FakeEngine:
    engine.tokens = engine.tokenizer.encode("and on and on ")
    engine.step_seconds = 0.005
    return engine


@pytest.mark.parametrize("hold", [True, False], ids=["queued", "running"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body", "requests"), ROUTES)
def test_the_answer_ends_in_time(
    http: httpx.Client,
    endless: FakeEngine,
    hold: bool,
    stream: bool,
    path: str,
    body: dict[str, Any],
    requests: int,
) -> None:
    endless.hold = hold
    answer = http.post(path, json=body | {"timeout": 0.1 if hold else 0.7, "stream": stream})
    assert answer.status_code == 200, answer.text
    if stream:
        chunks = events(answer.text)
        assert ends([choice for chunk in chunks for choice in chunk["choices"]]) == {("length", "timeout")}
        texts = [text_of(chunks, index) for index in range(body.get("n", 1) * requests)]
    else:
        choices = answer.json()["choices"]
        assert ends(choices) == {("length", "timeout")}
        texts = [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]
        assert len(texts) == body.get("n", 1) * requests
        assert (answer.json()["usage"]["completion_tokens"] == 0) is hold
    for text in texts:
        said = text.removeprefix("one") if body.get("echo") else text
        assert ("and on and on " * 100).startswith(said)
        assert (said == "") is hold
    assert endless.aborts == {None: requests}
    eventually(lambda: not endless.ledger)


def test_it_counts_from_the_arrival(http: httpx.Client, endless: FakeEngine) -> None:
    """When it is over before the engine is asked nothing is computed."""
    answer = http.post("/v1/completions", json={"prompt": "long " * 80, "timeout": 1e-9, "max_tokens": 50}).json()
    assert ends(answer["choices"]) == {("length", "timeout")}


def test_answers_in_time_are_as_without(http: httpx.Client, engine: FakeEngine) -> None:
    bodies = [CHAT | extra for extra in ({}, {"timeout": 100}, {"timeout": 86_400})]
    answers = [http.post("/v1/chat/completions", json=body).json()["choices"] for body in bodies]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["stop_reason"] is None


def test_it_counts_as_a_length(http: httpx.Client, endless: FakeEngine) -> None:
    def lengths() -> float:
        return metric(http.get("/metrics").text, "vllm:request_success_total", finished_reason="length")

    before = lengths()
    http.post("/v1/chat/completions", json=CHAT | {"timeout": 0.05})
    eventually(lambda: lengths() == before + 1)
    assert 'finished_reason="timeout"' not in http.get("/metrics").text


@pytest.mark.parametrize("timeout", [0, -1, 86_401, "5", True])
def test_what_is_no_time(http: httpx.Client, timeout: Any) -> None:
    answer = http.post("/v1/chat/completions", json=CHAT | {"timeout": timeout})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "timeout"


def test_it_does_not_wait_longer_for_a_grammar(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrammarCompiler, "compile", lambda compiling, constraint, tenant: Future())
    body = {"messages": [{"role": "user", "content": "Well?"}], "timeout": 0.1}
    body |= {"structured_outputs": {"regex": "nobody has compiled this(, yet)?"}}
    for stream in (False, True):
        answer = http.post("/v1/chat/completions", json=body | {"stream": stream})
        assert (answer.status_code, "0.1 s" in answer.json()["error"]["message"]) == (503, True)
        assert answer.headers["retry-after"]
    assert engine.requests == []
