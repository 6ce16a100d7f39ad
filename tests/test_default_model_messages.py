"""Anthropic's Messages on real input, through its SDK: the default model answers, and calls tools as their schemas say.

Needs the model, as `test_default_model` does.
"""

import os
from typing import Any, Literal

import anthropic
import jsonschema
import pytest
from pydantic import BaseModel, Field

pytestmark = [
    pytest.mark.skipif(os.environ.get("OCTAVO_TEST_OFFLINE") == "1", reason="no network to fetch the model from"),
    pytest.mark.timeout(300),
]

MODEL = "smollm2:135m"
HI: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "How it is outside",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    """What the model is to say."""

    name: str = Field(max_length=20)
    hobby: Literal["reading", "running"]


@pytest.fixture(scope="module")
def client(default_server: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=default_server, api_key="EMPTY", timeout=200, max_retries=0)


def test_a_conversation_with_a_tool(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "system": "Be brief.", "extra_body": {"seed": 3}}
    choice: Any = {"type": "tool", "name": "get_weather"}
    first = client.messages.create(max_tokens=200, messages=HI, tool_choice=choice, **fields)
    [call] = first.content
    assert call.type == "tool_use"
    assert first.stop_reason == "tool_use"
    jsonschema.validate(call.input, WEATHER["input_schema"])
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 20 degrees."}
    turns = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    fields["tool_choice"] = {"type": "none"}
    second = client.messages.create(max_tokens=40, messages=turns, **fields)
    with client.messages.stream(max_tokens=40, messages=turns, **fields) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in second.content]
    assert text == "".join(block.text for block in second.content if block.type == "text") != ""
    used = second.usage
    del fields["extra_body"]
    counted = client.messages.count_tokens(messages=turns, **fields).input_tokens
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == counted


def test_the_sdk_parses_what_it_asked_for(client: anthropic.Anthropic) -> None:
    asked: list[Any] = [{"role": "user", "content": "Tell me about a person called John."}]
    message = client.messages.parse(model=MODEL, max_tokens=200, messages=asked, output_format=Person)
    assert isinstance(message.parsed_output, Person)
