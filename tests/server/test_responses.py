"""OpenAI's Responses API, through its SDK."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo.server import background, recordings
from octavo.server.keys import ApiKey
from octavo.server.settings import ServerSettings
from octavo.text import load_tokenizer
from octavo.text.answer import AnswerFormat
from octavo.weights.checkpoint import Checkpoint
from tests.properties import examples
from tests.server.conftest import eventually
from tests.server.fake import MODEL, FakeEngine, make_tokenizer, running, served

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "How it is outside",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
NOW: dict[str, Any] = {"type": "function", "name": "now", "parameters": None, "strict": None}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% if message.tool_call_id %} of {{ message.tool_call_id }}{% endif %}"
    "{% for call in message.tool_calls or [] %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# tools #}"
)


@pytest.fixture(scope="module")
def _hermes(_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A model that thinks and calls as Qwen 3 does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    tokenizer = load_tokenizer(Checkpoint(folder, {}, {}, {}, None))
    answers = AnswerFormat.of(None, "", "hermes", "qwen3")
    with running(ServerSettings(), served(_engine, answers=answers, tokenizer=tokenizer)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)


@pytest.fixture
def hermes(_hermes: openai.OpenAI, engine: FakeEngine) -> openai.OpenAI:
    return _hermes


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**({"model": MODEL, "input": "What is it like in Paris?"} | fields))


def prompt_of(engine: FakeEngine) -> str:
    return engine.tokenizer.decode(list(engine.requests[-1].prompt_token_ids), skip_special_tokens=False)


def plain(response: Any) -> Any:
    """A response without what is new in every one."""
    data = response.to_dict()
    for name in ("id", "created_at", "completed_at"):
        data.pop(name)
    for item in data["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return data


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[list[Any], Any]:
    """A stream's events, and the response with which it ends."""
    events = list(ask(client, stream=True, **fields))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    return events, events[-1].response


def output_of(events: list[Any]) -> list[Any]:
    """The output that deltas come to, item by item."""
    items: list[Any] = []
    for event in events:
        match event.type:
            case "response.output_item.added":
                assert event.output_index == len(items)
                assert event.item.status == "in_progress"
                items.append(event.item.to_dict())
            case "response.content_part.added":
                part = event.part.to_dict()
                assert (part["text"], event.content_index) == ("", 0)
                items[event.output_index]["content"].append(part)
            case "response.output_text.delta" | "response.reasoning_text.delta":
                part = items[event.output_index]["content"][event.content_index]
                part["text"] += event.delta
                if event.type == "response.output_text.delta":
                    part["logprobs"] += [each.to_dict() for each in event.logprobs]
            case "response.function_call_arguments.delta":
                items[event.output_index]["arguments"] += event.delta
            case "response.output_text.done" | "response.reasoning_text.done":
                assert event.text == items[event.output_index]["content"][0]["text"]
            case "response.function_call_arguments.done":
                assert event.arguments == items[event.output_index]["arguments"]
            case "response.content_part.done":
                assert event.part.to_dict() == items[event.output_index]["content"][0]
            case "response.output_item.done":
                items[event.output_index]["status"] = event.item.status
                assert event.item.to_dict() == items[event.output_index]
    return items


def both(client: openai.OpenAI, **fields: Any) -> Any:
    """A response, which must be the same streamed, event by event, and when it is asked for again."""
    whole = ask(client, **fields)
    events, final = streamed(client, **fields)
    assert plain(whole) == plain(final)
    assert output_of(events) == final.to_dict()["output"]
    for response in (whole, final):
        assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    return final


def test_a_response(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Paris is fine."
    response = both(client, instructions="Be brief.", metadata={"a": "b"}, user="me", temperature=0.5)
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.content[0].to_dict() == {
        "type": "output_text",
        "text": "Paris is fine.",
        "annotations": [],
        "logprobs": [],
    }
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert (response.model, response.temperature, response.user) == (MODEL, 0.5, "me")
    assert response.metadata == {"a": "b"}
    assert response.usage.output_tokens == len(engine.tokenizer.encode("Paris is fine.")) + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens == response.usage.input_tokens // 16 * 16
    assert prompt_of(engine).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it like")
    openai.types.responses.Response.model_validate(response.to_dict())


def test_the_asynchronous_client(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Paris is fine."

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="EMPTY", max_retries=0) as sdk:
            response = await sdk.responses.create(model=MODEL, input="Hello")
            assert response.output_text == "Paris is fine."
            async with sdk.responses.stream(model=MODEL, input="Hello") as stream:
                text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
                final = await stream.get_final_response()
            assert text == final.output_text == "Paris is fine."

    asyncio.run(talk())


def test_a_response_that_is_cut_is_incomplete_and_so_is_its_last_item(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = lambda prompt, index: "Paris is fine, and it has been for a long time."
    response = both(client, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in response.output] == ["incomplete"]
    assert response.usage.output_tokens == 3
    assert response.completed_at is None


def test_an_answer_without_text_is_an_empty_message(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: ""
    response = both(client)
    assert [part.text for item in response.output for part in item.content] == [""]


def test_reasoning_and_calls(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"<think>\nParis is a city.\n</think>\n\nI look.\n{PARIS}\n{TIME}"
    response = both(hermes, tools=[WEATHER, NOW])
    thought, message, call, other = response.output
    assert (thought.type, thought.summary, thought.content[0].text) == ("reasoning", [], "Paris is a city.")
    assert message.content[0].text == "I look."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})
    assert (other.name, json.loads(other.arguments), other.call_id != call.call_id) == ("now", {}, True)
    assert call.id.startswith("fc_")
    assert call.call_id.startswith("call_")
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
    assert [tool.to_dict() for tool in response.tools] == [WEATHER, NOW | {"description": None}]


def test_thoughts_and_calls_that_are_cut(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    for reply in (f"<think>\n{'Paris. ' * 30}", PARIS):
        engine.reply = lambda prompt, index, reply=reply: reply  # type: ignore[misc]
        response = both(hermes, tools=[WEATHER], max_output_tokens=len(engine.tokenizer.encode(PARIS)) - 12)
        assert [item.status for item in response.output] == ["incomplete"]
        assert response.status == "incomplete"


def test_a_call_that_a_stop_string_cuts_is_incomplete(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"I look.\n{PARIS}"
    for stop, statuses in (('"Paris', ["completed", "incomplete"]), ("</tool_call>", ["completed", "completed"])):
        response = both(hermes, tools=[WEATHER], extra_body={"stop": [stop]})
        assert [item.status for item in response.output] == statuses
        assert response.status == statuses[-1]
        details = response.incomplete_details and response.incomplete_details.reason
        assert details == ("max_output_tokens" if response.status == "incomplete" else None)
        assert (response.completed_at is None) == (response.status == "incomplete")


def test_a_round_trip_of_tools(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"<think>\nHm.\n</think>\n\nI look.\n{PARIS}"
    first = ask(hermes, tools=[WEATHER])
    call = first.output[-1]
    engine.reply = lambda prompt, index: "It rains."
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    conversation = [{"role": "user", "content": "What is it like in Paris?"}, *first.output, result]
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    for fields in (
        {"previous_response_id": first.id, "input": [result]},
        {"input": conversation, "store": False},
        {"input": [conversation[0], *references, result]},
    ):
        assert ask(hermes, tools=[WEATHER], **fields).output_text == "It rains."
        called = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
        assert prompt_of(engine) == (
            "<|im_start|>user\nWhat is it like in Paris?<|im_end|>\n"
            f"<|im_start|>assistant\n<think>Hm.</think>I look.{called}<|im_end|>\n"
            f"<|im_start|>tool\nrain of {call.call_id}<|im_end|>\n<|im_start|>assistant\n"
        )


def test_calls_that_must_be_there_have_a_grammar(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    tools = [WEATHER, NOW]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}
    for choice, names in (
        ("required", {"get_weather", "now"}),
        ({"type": "function", "name": "get_weather"}, {"get_weather"}),
        (allowed, {"now"}),
    ):
        response = ask(hermes, tools=tools, tool_choice=choice)
        grammar = engine.requests[-1].params.grammar
        assert {name for name in ("get_weather", "now") if name in grammar} == names
        echoed = response.tool_choice
        assert (echoed if isinstance(echoed, str) else echoed.to_dict()) == choice
    ask(hermes, tools=tools, tool_choice="none")
    assert not engine.requests[-1].params.grammar


class Answer(pydantic.BaseModel):
    city: str
    degrees: int


def test_structured_output(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: '{"city": "Paris", "degrees": 21}'
    response = client.responses.parse(model=MODEL, input="Well?", text_format=Answer)
    assert response.output_parsed == Answer(city="Paris", degrees=21)
    assert "degrees" in engine.requests[-1].params.grammar
    assert response.text is not None
    assert response.text.to_dict()["format"]["name"] == "Answer"  # type: ignore[index]
    ask(client, text={"format": {"type": "json_object"}})
    assert engine.requests[-1].params.grammar


def test_log_probabilities(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Paris 😀 is fine."
    response = both(client, include=["message.output_text.logprobs"], top_logprobs=2)
    entries = response.output[0].content[0].logprobs
    assert bytes(byte for entry in entries[:-1] for byte in entry.bytes).decode() == "Paris 😀 is fine."
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert len(entries) == response.usage.output_tokens


def test_conversations(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Fine."
    first = ask(client, input="One?", instructions="Be brief.")
    second = ask(client, input="Two?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    third = ask(client, input="Three?", previous_response_id=second.id)
    assert prompt_of(engine) == "".join(
        [f"<|im_start|>user\n{text}?<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n" for text in ("One", "Two")]
    ) + ("<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n")
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as gone:
        ask(client, previous_response_id=third.id)
    assert (gone.value.param, gone.value.code) == ("previous_response_id", "previous_response_not_found")


def test_counting_is_what_is_read(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Fine."
    first = ask(hermes)
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    fields: dict[str, Any]
    for fields in (
        {"instructions": "Be brief."},
        {"previous_response_id": first.id, "tools": [WEATHER], "tool_choice": "required"},
        {"input": [{"type": "item_reference", "id": first.output[0].id}], "text": {"format": schema}},
    ):
        asked = {"model": MODEL, "input": "Well?"} | fields
        begun = len(engine.requests)
        counted = hermes.responses.input_tokens.count(**asked)
        assert (counted.object, len(engine.requests)) == ("response.input_tokens", begun)
        assert counted.input_tokens == ask(hermes, **asked).usage.input_tokens > 0
    assert hermes.responses.input_tokens.count(model=MODEL, input="x" * 5000).input_tokens > 5000


def test_items_of_the_input(client: openai.OpenAI, engine: FakeEngine) -> None:
    parts = [{"type": "input_text", "text": "Well"}, {"type": "input_text", "text": "?"}]
    inputs = [{"role": "user", "content": text} for text in ("a", "b")] + [{"role": "user", "content": parts}]
    response = ask(client, input=inputs)
    listed = list(client.responses.input_items.list(response.id, limit=2, order="asc"))  # three items in two pages
    texts = [[part.text for part in item.content] for item in listed]  # type: ignore[union-attr]
    assert texts == [["a"], ["b"], ["Well", "?"]]
    assert [item.id for item in client.responses.input_items.list(response.id)] == [each.id for each in listed[::-1]]


def test_what_is_not_there(client: openai.OpenAI) -> None:
    response = ask(client, store=False)
    for missing in (response.id, "resp_none"):
        with pytest.raises(openai.NotFoundError, match=missing):
            client.responses.retrieve(missing)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, input=[{"type": "item_reference", "id": response.output[0].id}])
    assert refused.value.param == "input[0].id"
    response = ask(client)
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(response.id)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": []}, "input"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    (
        {
            "tools": [NOW, WEATHER | {"parameters": {"type": "object", "properties": {"a": {"not": {}}}}}],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}],
            },
        },
        "tools[1].parameters.properties.a",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"properties": {"a": {"not": {}}}}}}},
        "text.format.schema.properties.a",
    ),
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True, "store": False}, "background"),
    ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
    ({"extra_body": {"guided_json": {}}}, "guided_json"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[param for _, param in BAD])
def test_refusals_name_the_field(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert refused.value.param == param
    with pytest.raises(openai.BadRequestError) as uncounted:
        client.post(
            "/responses/input_tokens", body={"input": "?"} | fields | fields.get("extra_body", {}), cast_to=dict
        )
    assert uncounted.value.body == refused.value.body


def test_a_stream_that_goes_wrong_ends_as_failed(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.fail_after = 3
    events, final = streamed(client)
    assert events[-1].type == "response.failed"
    assert (final.status, final.error.code, final.usage.output_tokens) == ("failed", "server_error", 3)
    assert output_of(events) == final.to_dict()["output"]
    assert client.responses.retrieve(final.id).to_dict() == final.to_dict()
    with pytest.raises(openai.InternalServerError):
        ask(client)


def test_items_stay_known_while_any_response_has_them(client: openai.OpenAI) -> None:
    first = ask(client)
    item = first.output[0]
    reference: dict[str, Any] = {"type": "item_reference", "id": item.id}
    again = [ask(client, input=[item.to_dict(), {"role": "user", "content": "?"}]) for _ in range(2)]
    for response in (again[1], first):
        client.responses.delete(response.id)
        assert ask(client, input=[reference], store=False).status == "completed"
    client.responses.delete(again[0].id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        ask(client, input=[reference], store=False)


def test_in_background(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Fine."
    engine.hold = True
    response = ask(client, background=True)
    assert (response.status, response.background) == ("queued", True)
    assert client.responses.retrieve(response.id).status == "queued"
    with pytest.raises(openai.BadRequestError, match="still being worked on"):
        ask(client, previous_response_id=response.id)
    engine.hold = False
    eventually(lambda: client.responses.retrieve(response.id).status == "completed")
    assert client.responses.retrieve(response.id).output_text == "Fine."
    assert client.responses.cancel(response.id).status == "completed"  # too late


def test_the_log_says_what_became_of_it(
    client: openai.OpenAI, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="octavo.server")
    engine.hold = True
    with ask(client, background=True, stream=True) as stream:
        response_id = next(stream).response.id
    engine.hold = False
    line = f"response {response_id} in background is completed: "
    eventually(lambda: any(line in message for message in caplog.messages))
    usage = client.responses.retrieve(response_id).usage
    assert usage is not None
    assert f"{line}{usage.output_tokens} output tokens" in caplog.messages


def test_what_is_in_background_can_be_cancelled(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.hold = True
    for end in (client.responses.cancel, client.responses.delete):
        response = ask(client, background=True)
        eventually(lambda: bool(engine.ledger))
        ended = end(response.id)
        eventually(lambda: not engine.ledger)
        if ended is not None:
            assert (ended.status, client.responses.retrieve(response.id).status) == ("cancelled", "cancelled")
    engine.hold = False
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(ask(client).id)


def test_in_background_and_streamed(client: openai.OpenAI, engine: FakeEngine) -> None:
    """Who follows a response may leave, come back where it was, and come when all is over."""
    engine.reply = lambda prompt, index: "All is well that ends well."
    engine.hold = True
    with ask(client, background=True, stream=True) as stream:
        created, queued = next(stream), next(stream)
        assert (created.type, queued.type, queued.response.status) == ("response.created", "response.queued", "queued")
    engine.hold = False
    response_id = created.response.id
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=queued.sequence_number))
    final = client.responses.retrieve(response_id)
    assert (rest[0].type, rest[-1].type, final.status) == ("response.in_progress", "response.completed", "completed")
    assert rest[-1].response.to_dict() == final.to_dict()
    assert "".join(event.delta for event in rest if event.type == "response.output_text.delta") == final.output_text
    every = [created, queued, *rest]
    assert [event.sequence_number for event in every] == list(range(len(every)))
    for first in range(len(every) + 2):
        assert list(client.responses.retrieve(response_id, stream=True, starting_after=first - 1)) == every[first:]
    client.responses.delete(response_id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response_id, stream=True)
    with pytest.raises(openai.BadRequestError, match="made with 'background' and 'stream'"):
        client.responses.retrieve(ask(client, stream=False).id, stream=True)


def test_what_follows_a_response_ends_when_it_is_cancelled(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.hold = True
    for end in (client.responses.cancel, client.responses.delete):
        with ask(client, background=True, stream=True) as stream:
            response_id = next(stream).response.id
            end(response_id)
            *_, last = stream
        assert (last.type, last.response.status, last.response.error) == ("response.failed", "cancelled", None)


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "KEPT_BYTES", 100)
    kept = recordings.Recordings(live_bytes=500)
    live = [kept.begin(("", str(number)), b"x" * 38 + b"\n\n") for number in range(6)]
    assert all(kept.get(("", str(number))) for number in range(6))
    kept.drop(live[0].key)  # which nobody could ask for when it ends
    for each in live:
        kept.end(each)
    assert [number for number in range(6) if kept.get(("", str(number)))] == [4, 5]
    kept.end(kept.begin(("", "long"), b"x" * 102 + b"\n\n"))
    assert [number for number in ("4", "5", "long") if kept.get(("", number))] == ["4", "5"]


@pytest.fixture
def narrow(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """A server that has 32 kB for the events of what it works on."""
    monkeypatch.setattr(background, "LIVE_BYTES", 32_000)
    with running(ServerSettings(max_body_bytes=4_000), served(engine)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)


def test_events_of_what_is_worked_on_are_bounded(narrow: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "Fine."
    engine.hold = True
    fields: dict[str, Any] = {"background": True, "stream": True, "metadata": {str(n): "x" * 200 for n in range(10)}}
    streams: list[Any] = []

    def fill() -> None:
        while len(streams) < 100:
            streams.append(ask(narrow, **fields))

    with pytest.raises(openai.InternalServerError, match="events of responses in background") as refused:
        fill()
    assert refused.value.status_code == 503
    assert float(refused.value.response.headers["retry-after"]) > 0
    assert len(streams) > 1
    engine.hold = False
    assert [list(stream)[-1].type for stream in streams] == ["response.completed"] * len(streams)
    assert list(ask(narrow, **fields))[-1].type == "response.completed"


def test_a_response_with_too_many_events_is_followed_no_further(narrow: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "a b c d " * 40
    *events, last = ask(narrow, background=True, stream=True)
    assert (last.type, last.code, last.sequence_number) == ("error", "service_unavailable", len(events))
    response_id = events[0].response.id
    eventually(lambda: narrow.responses.retrieve(response_id).status == "completed")
    assert narrow.responses.retrieve(response_id).output_text == "a b c d " * 40
    with pytest.raises(openai.BadRequestError, match="are not there"):
        narrow.responses.retrieve(response_id, stream=True)


def test_what_was_said_until_a_response_was_cancelled_stays(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: "All is well that ends well. " * 20
    engine.step_seconds = 0.01
    with ask(client, background=True, stream=True) as stream:
        events = [next(stream)]
        while events[-1].type != "response.output_text.delta":
            events.append(next(stream))
        cancelled = client.responses.cancel(events[0].response.id)
        events += stream
    final = events[-1].response
    assert cancelled.to_dict() == client.responses.retrieve(cancelled.id).to_dict() == final.to_dict()
    assert (cancelled.status, cancelled.error, events[-1].type) == ("cancelled", None, "response.failed")
    assert cancelled.output_text
    assert output_of(events) == final.to_dict()["output"]
    assert [item.status for item in final.output] == ["incomplete"]
    assert final.usage.output_tokens > 0


def test_failures_in_background_are_told(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.fail_after = 1
    response = ask(client, background=True)
    eventually(lambda: client.responses.retrieve(response.id).status == "failed")
    failed = client.responses.retrieve(response.id)
    assert failed.error is not None
    assert failed.usage is not None
    assert (failed.error.code, failed.usage.output_tokens) == ("server_error", 1)


def test_everybody_sees_their_own(engine: FakeEngine) -> None:
    settings = ServerSettings(keys=(ApiKey(key="a", name="ann"), ApiKey(key="b", name="bob")))
    with running(settings, served(engine)) as url:
        ann, bob = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) for key in "ab")
        response = ask(ann)
        item = {"type": "item_reference", "id": response.output[0].id}
        assert ann.responses.retrieve(response.id).id == response.id
        for attempt in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                attempt(response.id)
        for fields in ({"previous_response_id": response.id}, {"input": [item]}):
            with pytest.raises(openai.BadRequestError, match="not found"):
                ask(bob, **fields)
        assert ask(ann, input=[item, {"role": "user", "content": "?"}]).status == "completed"


PIECES = ["<think>\nHm.\n</think>\n\n", "Well, ", "😀 größere ", PARIS + "\n", TIME, "\n", "<think>", "<tool_call>\n{"]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=5), most=st.integers(1, 60))
@examples(20, suppress_health_check=list(HealthCheck))
def test_joined_streams_equal_whole_answers(
    hermes: openai.OpenAI, engine: FakeEngine, pieces: list[str], most: int
) -> None:
    engine.reply = lambda prompt, index: "".join(pieces)
    both(hermes, tools=[WEATHER, NOW], max_output_tokens=most)
    both(hermes)


def test_events_have_their_names(http: httpx.Client) -> None:
    raw = http.post("/v1/responses", json={"input": "Well?", "stream": True}).text
    frames = raw.split("\n\n")
    assert frames.pop() == ""
    for frame in frames:
        name, data = frame.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    assert frames[-1].startswith("event: response.completed\n")
