"""Anthropic's Messages, through its SDK: a scripted model that thinks and calls as Qwen 3 does."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import jiter
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo.engine.client import EngineState
from octavo.engine.request import Refusal, RequestRefused
from octavo.server.settings import ServerSettings
from octavo.text.answer import AnswerFormat
from tests.properties import examples
from tests.server.conftest import eventually
from tests.server.fake import MODEL, FakeEngine, make_tokenizer, running, served
from tests.server.raw import raw_stream

URL = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "How it is outside",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "now", "input_schema": {"type": "object"}},
]
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
CALLED = {"type": "tool_use", "id": "a", "name": "b", "input": {}}
ROOM = 4096
SHOWING = (
    "{% for tool in tools or [] %}T{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message | tojson }}{{ '\n' }}{% endfor %}"
    "{% if enable_thinking is defined %}thinking={{ enable_thinking }}{% endif %}"
    "{% if reasoning_effort is defined %}effort={{ reasoning_effort }}{% endif %}"
)
"""A template that shows all that it is given."""


@pytest.fixture(autouse=True)
def _room(engine: FakeEngine) -> None:
    give_room(engine)


def give_room(engine: FakeEngine) -> None:
    """For prompts that tell of tools."""
    assert engine.info is not None
    engine.info = replace(engine.info, max_model_len=ROOM)


@pytest.fixture(scope="module")
def address(_engine: FakeEngine) -> Iterator[str]:
    answers = AnswerFormat.of(None, "", "hermes", "qwen3")
    with running(ServerSettings(), served(_engine, answers=answers)) as url:
        yield url


@pytest.fixture
def claude(address: str, engine: FakeEngine) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="EMPTY", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def showing(_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    """A model whose prompts say what its template was given."""
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("showing"), SHOWING)
    answers = AnswerFormat.of(None, "", "hermes", "qwen3")
    with (
        running(ServerSettings(), served(_engine, answers=answers, tokenizer=tokenizer)) as url,
        anthropic.Anthropic(base_url=url, api_key="EMPTY", max_retries=0, timeout=60) as client,
    ):
        yield client


def fields_of(changes: dict[str, Any]) -> dict[str, Any]:
    fields = {"model": MODEL, "max_tokens": 200, "messages": HI, "tools": TOOLS} | changes
    return {name: value for name, value in fields.items() if value is not None}


def plain(message: Any) -> dict[str, Any]:
    """A message but for what differs from one answer to the next."""
    said: dict[str, Any] = json.loads(message.to_json())
    assert said.pop("id").startswith("msg_")
    for block in said["content"]:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("call_")
    return {name: value for name, value in said.items() if value is not None}


def both(client: anthropic.Anthropic, **changes: Any) -> Any:
    """The message, which is the same when it is streamed."""
    fields = fields_of(changes)
    whole = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    assert plain(streamed) == plain(whole)
    return whole


def blocks_of(message: Any) -> list[Any]:
    """Its blocks without their types' names."""
    return [
        {"text": lambda b: b.text, "thinking": lambda b: (b.thinking,), "tool_use": lambda b: (b.name, b.input)}[
            block.type
        ](block)
        for block in message.content
    ]


def stream_of(raw: str) -> tuple[dict[str, Any], list[str]]:
    """The message that a stream's events make, and their names. Fails unless they come in the order of the API."""
    frames = raw.split("\n\n")
    assert frames.pop() == "", "the stream ends in the middle of an event"
    message: dict[str, Any] = {}
    names, inputs, is_open = [], {}, False
    for frame in frames:
        head, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        names.append(event["type"])
        match event["type"]:
            case "message_start":
                assert not message
                message = event["message"]
                assert message["content"] == []
                assert message["stop_reason"] is message["stop_sequence"] is None
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(message["content"]) - 1
                _grow(message["content"][-1], event["delta"], inputs, event["index"])
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(message["content"]) - 1
                is_open = False
            case "message_delta":
                assert not is_open
                message |= event["delta"]
                message["usage"] = event["usage"]
    assert names[-2:] == ["message_delta", "message_stop"]
    for index, text in inputs.items():
        message["content"][index]["input"] = jiter.from_json(text.encode(), partial_mode=True)  # as the SDK does it
    return message, names


def _grow(block: dict[str, Any], delta: dict[str, Any], inputs: dict[int, str], index: int) -> None:
    kind = delta.pop("type")
    assert (
        kind
        in {
            "text": ("text_delta",),
            "thinking": ("thinking_delta", "signature_delta"),
            "tool_use": ("input_json_delta",),
        }[block["type"]]
    )
    [(name, piece)] = delta.items()
    assert piece
    if kind == "input_json_delta":
        inputs[index] = inputs.get(index, "") + piece
    else:
        assert not block.get("signature"), "nothing follows the signature"
        block[name] += piece


def test_thinking_text_and_calls_are_blocks(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"<think>\nParis is a city.\n</think>\n\nI will look.\n{PARIS}\n{NOW}"
    message = both(claude)
    assert blocks_of(message) == [
        ("Paris is a city.",),
        "I will look.",
        ("get_weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert (message.stop_reason, message.stop_sequence, message.role) == ("tool_use", None, "assistant")
    assert message.model == MODEL
    assert message.content[0].signature
    assert len({block.id for block in message.content[2:]}) == 2


def test_the_input_is_what_the_cache_did_not_have(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "<think>\nWell.\n</think>\n\nYes."
    usage = both(claude).usage
    prompt = len(engine.requests[-1].prompt_token_ids)
    assert usage.cache_read_input_tokens == prompt // 16 * 16 > 0
    assert usage.input_tokens == prompt % 16
    assert usage.cache_creation_input_tokens == 0
    assert 0 < usage.output_tokens_details.thinking_tokens < usage.output_tokens


def test_why_a_message_ends(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "One, two, three."
    assert both(claude).stop_reason == "end_turn"
    cut = both(claude, max_tokens=3)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 3)
    stopped = both(claude, stop_sequences=["two", "thr"])
    assert (blocks_of(stopped), stopped.stop_reason, stopped.stop_sequence) == (["One, "], "stop_sequence", "two")
    engine.reply = lambda prompt, index: PARIS
    stopped = both(claude, stop_sequences=['"Paris'])  # no "tool_use": the call is not whole
    assert (blocks_of(stopped), stopped.stop_reason) == ([("get_weather", {})], "stop_sequence")
    engine.step_seconds = 0.02
    timed = both(claude, extra_body={"timeout": 0.01}, max_tokens=200)
    assert (timed.stop_reason, timed.stop_sequence) == ("max_tokens", None)


def test_an_answer_of_nothing_is_a_message(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: ""
    message = both(claude)
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "end_turn", 1)
    with claude.messages.stream(**fields_of({})) as stream:
        assert [event.type for event in stream] == ["message_start", "message_delta", "message_stop"]


def test_a_call_that_is_cut(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    whole = len(engine.tokenizer.encode(PARIS))
    seen = set()
    for most in range(1, whole + 1):
        message = both(claude, max_tokens=most)
        seen |= {json.dumps(block.input) for block in message.content if block.type == "tool_use"}
        assert message.stop_reason == "max_tokens"
    assert seen == {"{}", '{"city": "Paris"}'}


def test_thinking_that_is_not_wanted_or_not_shown(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "<think>\nHm.\n</think>\n\nYes."
    assert blocks_of(both(claude, thinking={"type": "disabled"})) == ["Yes."]
    omitted = both(claude, thinking={"type": "adaptive", "display": "omitted"})
    assert blocks_of(omitted) == [("",), "Yes."]
    assert omitted.content[0].signature


@given(data=st.data())
@examples(30, suppress_health_check=list(HealthCheck))
def test_streamed_equals_whole(address: str, engine: FakeEngine, data: st.DataObject) -> None:
    thought = st.sampled_from(["", "<think>\nHm, größer 😀?\n</think>\n\n", "<think>cut"])
    piece = st.sampled_from(["I will look.", " a < b ", "<tool", "\n\n", "où\u2028", PARIS, NOW, '{"name": "x"}'])
    answer = data.draw(thought) + "".join(data.draw(st.lists(piece, max_size=5)))
    engine.reset()
    give_room(engine)
    engine.reply = lambda prompt, index: answer
    body = fields_of(
        {
            "max_tokens": data.draw(st.sampled_from([5, 30, 300])),
            "stop_sequences": data.draw(st.sampled_from([None, ["look", "Paris"]])),
            "tools": data.draw(st.sampled_from([None, TOOLS])),
            "thinking": data.draw(st.sampled_from([None, {"type": "disabled"}, {"type": "adaptive"}])),
        }
    )
    whole = httpx.post(address + URL, json=body).json()
    message, names = stream_of(httpx.post(address + URL, json=body | {"stream": True}).text)
    assert names[0] == "message_start"
    assert names.count("message_start") == 1
    for each in (whole, message):
        each.pop("id")
        for block in each["content"]:
            block.pop("id", None)
    assert message == whole


def test_pings_and_errors_are_events(engine: FakeEngine) -> None:
    engine.hold, engine.fail_after = True, 2
    with (
        running(ServerSettings(sse_keep_alive_interval=0.05), served(engine)) as url,
        raw_stream(url, fields_of({"stream": True}), URL) as connection,
    ):
        received = b""
        while b"message_start" not in received:
            received += connection.recv(65536)
            engine.hold = b"event: ping" not in received
        while b"event: error" not in received:
            received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b'event: ping\ndata: {"type":"ping"}\n\n' in body
    error = json.loads(body.split(b"event: error\ndata: ")[1].split(b"\n\n")[0])
    assert error["error"] == {"type": "api_error", "message": "The engine failed: it was lost."}
    assert b"\r\nrequest-id: " + error["request_id"].encode() + b"\r\n" in head + b"\r\n"


def test_the_sdk_raises_what_ends_a_stream(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.fail_after = 3
    with pytest.raises(anthropic.APIStatusError, match="it was lost") as caught:
        list(claude.messages.create(**fields_of({"stream": True})))
    assert caught.value.type == "api_error"


async def _ask(address: str, **changes: Any) -> tuple[Any, Any]:
    async with anthropic.AsyncAnthropic(base_url=address, api_key="EMPTY", max_retries=0) as client:
        whole = await client.messages.create(**fields_of(changes))
        async with client.messages.stream(**fields_of(changes)) as stream:
            assert "".join([text async for text in stream.text_stream])
            return whole, await stream.get_final_message()


def test_the_asynchronous_client(address: str, engine: FakeEngine) -> None:
    whole, streamed = asyncio.run(_ask(address))
    assert plain(whole) == plain(streamed)


def told(engine: FakeEngine) -> str:
    """The last prompt."""
    return engine.tokenizer.decode(list(engine.requests[-1].prompt_token_ids), skip_special_tokens=False)


def messages_told(engine: FakeEngine) -> list[Any]:
    """The messages that the template showed."""
    lines = told(engine).split("<|im_start|>")[1:]
    return [json.JSONDecoder().raw_decode(line)[0] for line in lines]


def test_a_conversation_with_tools(showing: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"<think>\nHm.\n</think>\n\nI will look.\n{PARIS}\n{NOW}"
    first = showing.messages.create(**fields_of({"system": "Be brief."}))
    weather, now = first.content[2:]
    results: list[Any] = [
        {"type": "text", "text": "There you are."},
        {"type": "tool_result", "tool_use_id": weather.id, "content": [{"type": "text", "text": "sunny"}]},
        {"type": "tool_result", "tool_use_id": now.id, "content": "no clock", "is_error": True},
    ]
    engine.reply = lambda prompt, index: "Sunny."
    turns = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    system: list[Any] = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    second = showing.messages.create(**fields_of({"messages": turns, "system": system}))
    assert blocks_of(second) == ["Sunny."]
    assert messages_told(engine) == [
        {"role": "system", "content": "Be brief."},
        HI[0],
        {
            "role": "assistant",
            "content": "I will look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": weather.id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
                },
                {"id": now.id, "type": "function", "function": {"name": "now", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": weather.id, "name": "get_weather", "content": "sunny"},
        {"role": "tool", "tool_call_id": now.id, "name": "now", "content": "Error: no clock"},
        {"role": "user", "content": "There you are."},
    ]
    assert '"name": "get_weather"' in told(engine).partition("<|im_start|>")[0]


def test_turns_of_one_role_are_one_message(showing: anthropic.Anthropic, engine: FakeEngine) -> None:
    turns: list[Any] = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": [{"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "A."}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "b", "signature": "of another server"}]},
        {"role": "user", "content": ""},
    ]
    showing.messages.create(**fields_of({"messages": turns}))
    assert messages_told(engine) == [
        {"role": "user", "content": "One.\nTwo."},
        {"role": "assistant", "content": "A.", "reasoning_content": "b"},
        {"role": "user", "content": ""},
    ]


def test_thinking_is_the_templates(showing: anthropic.Anthropic, engine: FakeEngine) -> None:
    enabled = {"type": "enabled", "budget_tokens": 1024}
    for fields, end in (
        ({}, ""),
        ({"thinking": enabled, "max_tokens": 2000}, "thinking=True"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "thinking=Trueeffort=low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "thinking=Falseeffort=none"),
        ({"output_config": {"effort": "max"}}, "effort=max"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": "so"}}}, "thinking=so"),
    ):
        showing.messages.create(**fields_of(fields | {"tools": None}))
        assert told(engine).endswith('?"}\n' + end)


def test_an_answer_that_the_client_has_begun_is_continued(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    claude.messages.create(**fields_of({"messages": [*HI, {"role": "assistant", "content": "It is"}], "tools": None}))
    assert told(engine).endswith("<|im_start|>assistant\nIt is")


def test_choices_of_tools(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    for choice, names in (({"type": "any"}, {"get_weather", "now"}), ({"type": "tool", "name": "now"}, {"now"})):
        claude.messages.create(**fields_of({"tool_choice": choice}))
        grammar = engine.requests[-1].params.grammar
        assert {name for name in ("get_weather", "now") if name in grammar} == names
    grammars = []
    for disabled in (False, True):
        decision = {"type": "any", "disable_parallel_tool_use": disabled}
        claude.messages.create(**fields_of({"tool_choice": decision}))
        grammars.append(engine.requests[-1].params.grammar)
    assert grammars[0] != grammars[1]
    message = both(claude, tool_choice={"type": "none"})
    assert (blocks_of(message), message.stop_reason) == ([PARIS], "end_turn")
    assert not engine.requests[-1].params.grammar


def test_what_an_answer_must_look_like(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"wanted": {"type": "integer"}}}}
    for fields in ({"output_config": {"format": form}}, {"extra_body": {"output_format": form}}):
        claude.messages.create(**fields_of(fields | {"tools": None}))
        assert "wanted" in engine.requests[-1].params.grammar


def test_sampling(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    claude.messages.create(**fields_of({"extra_body": {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}}))
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 7, 3)
    assert params.max_tokens == 200


def test_fields_without_effect_are_known(address: str, engine: FakeEngine) -> None:
    fields = {"metadata": {"user_id": "me"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}
    answer = httpx.post(f"{address}{URL}?beta=true", json=fields_of(fields))
    assert (answer.status_code, answer.headers.get("x-octavo-warning")) == (200, None)
    answer = httpx.post(address + URL, json=fields_of({"stop_sequence": ["x"]}))
    assert "stop_sequences" in answer.headers["x-octavo-warning"]


def test_counting_is_what_is_read(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    for fields in ({}, {"tools": None}, {"system": "Be brief.", "tool_choice": {"type": "any"}}):
        asked = fields_of(fields)
        claude.messages.create(**asked)
        del asked["max_tokens"]
        counted = claude.messages.count_tokens(**asked).input_tokens
        assert counted == len(engine.requests[-1].prompt_token_ids)
    long: list[Any] = [{"role": "user", "content": "x" * 5000}]
    assert claude.messages.count_tokens(model=MODEL, messages=long).input_tokens > 5000


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
            "messages[0].content[1].type",
        ),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]},
            "messages[0].content[0].input",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [CALLED]}]},
            "messages[1]",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [TOOLS[0], {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].name"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        (
            {
                "tools": [
                    TOOLS[0],
                    {"name": "f", "strict": True, "input_schema": {"properties": {"a": {"not": {}}}}},
                ]
            },
            "tools[1].input_schema.properties.a",
        ),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}, "tools": None}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"temperature": 1.1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["x"] * 1000}, "stop_sequences"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}}, "output_config.format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}, "strict_mode": 1}}},
            "output_config.format.strict_mode",
        ),
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"extra_body": {"mcp_servers": [{"type": "url"}]}}, "mcp_servers"),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "extra_body": {"response_format": {"type": "json_object"}},
            },
            "response_format",
        ),
    ],
)
def test_a_wrong_field_is_named_as_it_was_written(
    address: str, engine: FakeEngine, fields: dict[str, Any], where: str
) -> None:
    body = fields_of(fields | fields.get("extra_body", {}) | {"extra_body": None})
    for stream in (False, True):
        answer = httpx.post(address + URL, json=body | {"stream": stream})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert f"'{where}'" in answer.json()["error"]["message"]
    if not fields.keys() & {"max_tokens", "temperature", "stop_sequences", "extra_body", "output_config", "thinking"}:
        counted = httpx.post(f"{address}{URL}/count_tokens", json=body)
        if "strict" not in str(fields):  # which only a grammar tells
            assert counted.json()["error"] == answer.json()["error"]


def test_every_status_has_its_class(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    def refused(kind: type[anthropic.APIStatusError], **changes: Any) -> anthropic.APIStatusError:
        found: list[anthropic.APIStatusError] = []
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                claude.messages.create(**fields_of(changes | {"stream": stream}))
            body: Any = caught.value.body
            assert set(body) == {"type", "error", "request_id"}
            assert set(body["error"]) == {"type", "message"}
            assert body["type"] == "error"
            assert body["request_id"] == caught.value.request_id
            assert caught.value.response.headers["x-request-id"] == caught.value.request_id
            found.append(caught.value)
        assert found[0].message.partition("request_id")[0] == found[1].message.partition("request_id")[0]
        return found[0]

    assert refused(anthropic.BadRequestError, max_tokens=0).type == "invalid_request_error"
    assert refused(anthropic.NotFoundError, model="claude").type == "not_found_error"
    both_long = rf"input length and `max_tokens` exceed context limit: \d+ \+ {ROOM} > {ROOM}, decrease .*"
    assert re.fullmatch(both_long, str(refused(anthropic.BadRequestError, max_tokens=ROOM).api_message))
    long: list[Any] = [{"role": "user", "content": "x" * 2 * ROOM}]
    assert "prompt is too long" in str(refused(anthropic.BadRequestError, messages=long).api_message)
    engine.refuse = RequestRefused(Refusal.OVERLOADED, "the queue is full", 1.0)
    full = refused(anthropic.RateLimitError)
    assert (full.type, full.response.headers["retry-after"]) == ("rate_limit_error", "1")
    engine.refuse = None
    engine.fail_after = 0
    assert refused(anthropic.InternalServerError).type == "api_error"
    engine.state = EngineState.FAILED
    failed = refused(anthropic.ServiceUnavailableError)
    assert (failed.type, failed.response.headers["x-should-retry"]) == ("api_error", "false")
    engine.state, engine.info = EngineState.LOADING, None
    loading = refused(anthropic.OverloadedError)
    assert (loading.status_code, loading.type, loading.response.headers["retry-after"]) == (
        529,
        "overloaded_error",
        "2",
    )


def test_errors_below_the_route(address: str, engine: FakeEngine) -> None:
    with httpx.Client(base_url=address) as http:
        for method, path, status, kind in (
            ("GET", URL, 405, "invalid_request_error"),
            ("GET", f"{URL}/count_tokens", 405, "invalid_request_error"),
            ("POST", f"{URL}/batches", 404, "not_found_error"),
            ("POST", URL, 400, "invalid_request_error"),
        ):
            answer = http.request(method, path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
            assert answer.json()["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
        assert set(http.post("/v1/messagesx").json()["error"]) == {"message", "type", "param", "code"}


def test_keys_and_sizes(engine: FakeEngine) -> None:
    settings = ServerSettings(api_key=("secret",), max_body_bytes=2000)
    with running(settings, served(engine)) as url:
        for key in ({"api_key": "secret"}, {"auth_token": "secret"}):
            anthropic.Anthropic(base_url=url, max_retries=0, **key).messages.create(**fields_of({}))  # type: ignore[arg-type]
        stranger = anthropic.Anthropic(base_url=url, api_key="other", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as caught:
            stranger.messages.create(**fields_of({}))
        assert caught.value.type == "authentication_error"
        assert caught.value.request_id
        client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
        with pytest.raises(anthropic.ContentTooLargeError) as large:
            client.messages.create(**fields_of({"system": "x" * 3000}))
        assert large.value.type == "request_too_large"
    eventually(lambda: not engine.ledger)
