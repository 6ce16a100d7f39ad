"""Calls of tools and reasoning in chat completions, through OpenAI's SDK: a scripted model writes them."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from octavo.engine.wire import Submit, decode_for_engine, encode
from octavo.server.settings import ServerSettings
from octavo.text.answer import AnswerFormat
from tests.server.fake import MODEL, TEMPLATE, FakeEngine, make_tokenizer, running, served

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "How it is outside",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def hermes(_engine: FakeEngine) -> Iterator[openai.OpenAI]:
    """A model that thinks and calls as Qwen 3 does."""
    answers = AnswerFormat.of(None, "", "hermes", "qwen3")
    with running(ServerSettings(), served(_engine, answers=answers)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**({"model": MODEL, "messages": MESSAGES, "tools": TOOLS} | fields))


def both(client: openai.OpenAI, **fields: Any) -> tuple[Any, str]:
    """The message and why it ended, which must be the same streamed."""
    whole = ask(client, **fields).choices[0]
    final: Any = None
    with client.chat.completions.stream(**({"model": MODEL, "messages": MESSAGES, "tools": TOOLS} | fields)) as stream:
        for event in stream:
            final = event
        final = stream.get_final_completion().choices[0]
    said, again = whole.message.model_dump(), final.message.model_dump()
    for message in (said, again):
        for call in message["tool_calls"] or ():
            assert call.pop("id").startswith("call_")
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        message.pop("parsed", None)
    assert {name: value for name, value in said.items() if value} == {k: v for k, v in again.items() if v}
    assert whole.finish_reason == final.finish_reason
    return whole.message, whole.finish_reason


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]


def test_calls_are_told_apart_from_text(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"I will look.\n{PARIS}\n{NOW}"
    message, reason = both(hermes)
    assert message.content == "I will look."
    assert calls(message) == [("get_weather", {"city": "Paris"}), ("now", {})]
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'
    assert reason == "tool_calls"


def test_a_call_alone_has_no_content(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    message, reason = both(hermes)
    assert message.content is None
    assert (calls(message), reason) == ([("get_weather", {"city": "Paris"})], "tool_calls")


def test_reasoning_is_told_apart_and_counted(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: f"<think>\nParis is a city.\n</think>\n\nSo:\n{PARIS}"
    message, reason = both(hermes)
    assert message.reasoning_content == message.reasoning == "Paris is a city."
    assert (message.content, reason) == ("So:", "tool_calls")
    usage = ask(hermes).usage
    thought = len(engine.tokenizer.encode("<think>\nParis is a city.\n</think>"))
    assert abs(usage.completion_tokens_details.reasoning_tokens - thought) < 12
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert ask(hermes, extra_body={"include_reasoning": False}).choices[0].message.content == "So:"
    assert not hasattr(ask(hermes, extra_body={"include_reasoning": False}).choices[0].message, "reasoning")


def test_without_tools_markup_of_calls_is_text(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    for fields in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        choice = ask(hermes, **fields).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (PARIS, None, "stop")


def test_a_call_that_is_cut_ends_by_length(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    most = len(engine.tokenizer.encode(PARIS)) - 12
    choice = ask(hermes, max_tokens=most).choices[0]
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert '{"city": "Paris"}'.startswith(call.function.arguments)
    chunks = list(ask(hermes, max_tokens=most, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments


CUT = "|stop|"
WRITTEN = {
    "hermes": PARIS,
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "</function>\n</tool_call>",
    "pythonic": '[get_weather(city="Paris")]',
    "deepseek_v31": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "openai": '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
}


@pytest.mark.parametrize("form", WRITTEN)
def test_a_call_that_a_stop_string_cuts_is_none_to_be_made(engine: FakeEngine, form: str) -> None:
    """Wherever it is cut: the answer ends with a call exactly if that is whole."""
    written, reasons = WRITTEN[form], set()
    with running(ServerSettings(), served(engine, answers=AnswerFormat.of(None, "", form))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)
        for place in range(len(written), 0, -3):
            engine.reply = lambda prompt, index, at=place: written[:at] + CUT + written[at:]  # type: ignore[misc]
            choice = ask(client, stop=[CUT]).choices[0]
            called = choice.message.tool_calls or ()
            whole = [call for call in called if is_json(call.function.arguments)]
            assert (choice.finish_reason == "tool_calls", choice.stop_reason) == (bool(whole), CUT)
            chunks = list(ask(client, stop=[CUT], stream=True))
            assert chunks[-1].choices[0].finish_reason == choice.finish_reason
            reasons.add((choice.finish_reason, bool(called)))
    assert reasons == {("stop", False), ("stop", True), ("tool_calls", True)}


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_call_that_other_ends_cut(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    quote = engine.tokenizer.encode(PARIS)[-14]
    cut = ask(hermes, extra_body={"stop_token_ids": [quote]}).choices[0]
    assert (cut.finish_reason, cut.stop_reason, bool(cut.message.tool_calls)) == ("stop", quote, True)
    engine.reply = lambda prompt, index: PARIS.replace("Paris", "Paris " * 20)
    again = {"max_pattern_size": 20, "min_count": 4}
    cut = ask(hermes, extra_body={"repetition_detection": again}).choices[0]
    assert (cut.finish_reason, bool(cut.message.tool_calls)) == ("repetition", True)
    engine.reply = lambda prompt, index: PARIS[:-16]  # the model's own mistake
    assert ask(hermes).choices[0].finish_reason == "tool_calls"


def test_what_must_be_called_has_a_grammar(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice, names in (("required", {"get_weather", "now"}), (named, {"get_weather"})):
        ask(hermes, tool_choice=choice)
        grammar = engine.requests[-1].params.grammar
        assert {name for name in ("get_weather", "now") if name in grammar} == names
    ask(hermes, tool_choice="none")
    assert not engine.requests[-1].params.grammar


def test_a_schema_that_cannot_be_kept_to_is_refused_only_if_it_must_be(
    hermes: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = lambda prompt, index: PARIS
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"not": {}}}}}
    loose = [{"type": "function", "function": function}]
    assert calls(ask(hermes, tools=loose).choices[0].message) == [("get_weather", {"city": "Paris"})]
    for fields in (
        {"tools": loose, "tool_choice": "required"},
        {"tools": [{"type": "function", "function": function | {"strict": True}}]},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(hermes, **fields)
        assert refused.value.param == "tools[0].function.parameters.properties.city"


def test_the_old_names(hermes: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda prompt, index: PARIS
    functions = [tool["function"] for tool in TOOLS]
    choice = ask(hermes, tools=openai.NOT_GIVEN, functions=functions, function_call={"name": "get_weather"}).choices[0]
    assert (choice.message.function_call.name, choice.finish_reason) == ("get_weather", "function_call")
    assert json.loads(choice.message.function_call.arguments) == {"city": "Paris"}
    stream = ask(hermes, tools=openai.NOT_GIVEN, functions=functions, stream=True)
    pieces = [chunk.choices[0].delta.function_call for chunk in stream if chunk.choices[0].delta.function_call]
    assert "".join(piece.arguments for piece in pieces) == '{"city": "Paris"}'


@pytest.fixture(scope="module")
def untaught(_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A model whose chat template has no word of tools."""
    template = TEMPLATE.replace("no tools here", "no results here")
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("untaught"), template)
    with running(ServerSettings(), served(_engine, tokenizer=tokenizer)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)


def test_a_model_that_was_not_taught_tools_is_told_of_them(untaught: openai.OpenAI, engine: FakeEngine) -> None:
    ask(untaught)
    prompt = engine.tokenizer.decode(list(engine.requests[-1].prompt_token_ids), skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nYou may call these functions")
    assert "How it is outside" in prompt
    ask(untaught, messages=[{"role": "system", "content": "Be brief."}, *MESSAGES])
    prompt = engine.tokenizer.decode(list(engine.requests[-1].prompt_token_ids), skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou may call")


def test_a_budget_of_thinking(hermes: openai.OpenAI, http: httpx.Client, engine: FakeEngine) -> None:
    """The engine is told when to end what the model thinks, and how; a model that does not think needs no end."""
    for opening, begun in (("", False), ("<think>\n", True)):
        fields = {"thinking_token_budget": 5, "chat_template_kwargs": {"opening": opening}}
        ask(hermes, extra_body=fields)
        thinking = engine.requests[-1].params.thinking
        assert thinking is not None
        assert (thinking.tokens, thinking.begun) == (5, begun)
        assert (thinking.opens, thinking.closes) == ((b"<think>",), (b"</think>",))
        assert engine.tokenizer.decode(thinking.end) == "</think>"
        request = engine.requests[-1]
        assert decode_for_engine(memoryview(encode(Submit(replace(request, prompt_token_ids=array("i", [1])))))) == (
            Submit(replace(request, prompt_token_ids=array("i", [1])))
        )
    answer = http.post("/v1/chat/completions", json={"messages": MESSAGES, "thinking_token_budget": 0, "max_tokens": 2})
    assert answer.status_code == 200
    assert engine.requests[-1].params.thinking is None


def test_a_budget_in_channels(engine: FakeEngine) -> None:
    with running(ServerSettings(), served(engine, answers=AnswerFormat.of(None, "gpt_oss", "openai"))) as url:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json={"messages": MESSAGES, "thinking_token_budget": 5}, timeout=20
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "thinking_token_budget"


MALFORMED = [{"required": 5}, {"anyOf": 5}, {"properties": [1]}, {"properties": {"a": 5}}, {"required": [{}]}]


@pytest.mark.parametrize("form", ["qwen3_coder", "glm45", "pythonic", "hermes"])
def test_parameters_that_are_no_schema_are_refused_or_left_free(engine: FakeEngine, form: str) -> None:
    with running(ServerSettings(), served(engine, answers=AnswerFormat.of(None, "", form))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)
        for wrong in MALFORMED:
            tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", **wrong}}}]
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, tools=tools, tool_choice="required")
            assert refused.value.param.startswith("tools")
            assert ask(client, tools=tools).choices[0].finish_reason == "stop"
