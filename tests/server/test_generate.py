"""POST /generate, and what it shows of dialects: fields, answers, errors and events of their own."""

import json
from typing import Any

import httpx
import pytest

from octavo.deployments.choice import Choice, Prompt, TextOptions, join
from octavo.engine.client import EngineState
from octavo.engine.request import FinishReason, Output, Refusal, RequestRefused
from octavo.server.settings import ServerSettings
from octavo.text import Tokenizer
from octavo.text.parts import Finish, Reasoning, Text
from tests.server.fake import ALIAS, MODEL, FakeEngine, running, served
from tests.server.sse import events
from tests.text.test_parser import ThinkParser

URL = "/generate"


def test_answers(http: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.reply = lambda prompt, index: "Paris, größer als 😀."
    response = http.post(URL, json={"prompt": "The capital", "max_tokens": 50, "temperature": 0})
    assert response.json() == {"text": "Paris, größer als 😀."}
    [request] = engine.requests
    assert request.prompt_token_ids == tokenizer.encode("The capital")
    assert (request.params.max_tokens, request.params.temperature) == (50, 0)


def test_streams(http: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "hi", "stop": "und", "top_p": 0.5, "seed": 7, "model": ALIAS}
    whole = http.post(URL, json=body).json()
    raw = http.post(URL, json=body | {"stream": True})
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    pieces = events(raw.text)
    assert all(set(piece) == {"text"} for piece in pieces)
    assert len(pieces) > 5
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert whole["text"].endswith("😀 ")
    assert (engine.requests[-1].params.top_p, engine.requests[-1].params.seed) == (0.5, 7)


def test_defaults(http: httpx.Client, engine: FakeEngine) -> None:
    http.post(URL, json={"prompt": "hi", "temperature": None})
    params = engine.requests[-1].params
    assert (params.n, params.max_tokens, params.temperature) == (1, 128, 1.0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'prompt'"),
        ({"prompt": ["a"]}, "'prompt'"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": "hi", "max_tokens": 0}, "'max_tokens'"),
        ({"prompt": "hi", "max_tokens": 10**6}, "maximum context length"),
        ({"prompt": "hi", "temperature": -1}, "'temperature'"),
        ({"prompt": "hi", "logit_bias": {"100000": 1}}, "'logit_bias'"),
        ({"prompt": "hi", "guided_json": {"type": "object"}}, "'guided_json': this field is not supported"),
        ({"prompt": "hi", "response_format": {"type": "xml"}}, "'response_format.type'"),
    ],
)
def test_errors_have_the_shape_of_its_clients(http: httpx.Client, body: dict[str, Any], words: str) -> None:
    for extra in ({}, {"stream": True}):
        response = http.post(URL, json=body | extra)
        assert response.status_code == 400
        assert set(response.json()) == {"detail"}
        assert words in response.json()["detail"]


def test_every_error_of_the_route_has_it(http: httpx.Client, engine: FakeEngine) -> None:
    def detail(response: httpx.Response, status: int) -> str:
        assert response.status_code == status
        assert set(response.json()) == {"detail"}
        return str(response.json()["detail"])

    assert "not valid JSON" in detail(http.post(URL, content="{", headers={"content-type": "application/json"}), 400)
    assert "Content-Type" in detail(http.post(URL, content="{}", headers={"content-type": "text/plain"}), 400)
    assert "'nope'" in detail(http.post(URL, json={"prompt": "hi", "model": "nope"}), 404)
    assert "only POST" in detail(http.get(URL), 405)
    with running(ServerSettings(api_key=("key",)), served(engine)) as url:
        assert "API key" in detail(httpx.post(url + URL, json={"prompt": "hi"}), 401)
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "the queue is full", 3.0)
    response = http.post(URL, json={"prompt": "hi", "stream": True})
    assert "queue is full" in detail(response, 429)
    assert response.headers["retry-after"] == "3"
    engine.refuse = None
    engine.fail_after = 0
    assert "it was lost" in detail(http.post(URL, json={"prompt": "hi", "stream": True}), 500)
    engine.state, engine.info = EngineState.LOADING, None
    assert "loading" in detail(http.post(URL, json={"prompt": "hi"}), 503)


def test_an_error_in_the_middle_is_an_event(http: httpx.Client, engine: FakeEngine) -> None:
    engine.fail_after = 3
    *pieces, last = events(http.post(URL, json={"prompt": "hi", "stream": True}).text)
    assert len(pieces) == 3
    assert last == {"detail": "The engine failed: it was lost."}


def test_it_is_documented(http: httpx.Client) -> None:
    description = http.get("/openapi.json").json()
    operation = description["paths"][URL]["post"]
    assert json.dumps(operation["responses"]["400"]["content"]).count("detail") == 2
    assert "text" in operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    fields = description["components"]["schemas"]["GenerateRequest"]
    assert fields["required"] == ["prompt"]
    assert {"max_tokens", "temperature", "top_p", "stop", "seed", "stream"} <= fields["properties"].keys()


def test_parts_of_a_parser_reach_the_dialect(tokenizer: Tokenizer) -> None:
    """Between stop strings and the API: what a parser makes of the text, and last the end."""
    ids = tokenizer.encode("<think>why</think>Paris stop")
    for sizes in ([1] * len(ids), [len(ids)]):
        options = TextOptions(stop=("stop",), parser=ThinkParser)
        choice, deltas, position = Choice(0, tokenizer, Prompt([7]), options), [], 0
        for size in sizes:
            new = ids[position : position + size]
            position += size
            reason = FinishReason.LENGTH if position == len(ids) else None
            deltas.append(choice.push(Output(request_id="r", token_ids=new, finish_reason=reason)))
        whole = join(deltas)
        assert whole.parts == [Reasoning("why"), Text("Paris "), Finish("stop", "stop")]
        assert whole.text == "Paris "


def test_the_model_is_the_first_one_by_default(http: httpx.Client) -> None:
    for name in (MODEL, ALIAS, "", None):
        assert http.post(URL, json={"prompt": "hi", "max_tokens": 1, "model": name}).status_code == 200
