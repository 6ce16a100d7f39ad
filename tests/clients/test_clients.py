"""Clients that people write agents and pipelines with: each does its main jobs against the server unchanged."""

import os
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

MODEL = "smollm2:135m"
QUESTION = "Tell me about a person called John."


def base() -> str:
    return os.environ["OCTAVO_URL"] + "/v1"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    mood: Literal["happy", "sad"]


def get_weather(city: str) -> str:
    """How it is outside.

    Args:
        city: where.
    """
    return f"It is sunny in {city}."


class TestLiteLLM:
    def ask(self, **fields: Any) -> Any:
        import litellm

        return litellm.completion(
            **(
                {
                    "model": f"openai/{MODEL}",
                    "api_base": base(),
                    "api_key": "EMPTY",
                    "messages": [{"role": "user", "content": QUESTION}],
                    "max_tokens": 100,
                    "temperature": 0,
                    "num_retries": 0,
                }
                | fields
            )
        )

    def test_streamed_is_whole(self) -> None:
        whole = self.ask(max_tokens=20)
        stream = self.ask(max_tokens=20, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert whole.usage.completion_tokens == 20

    def test_schema(self) -> None:
        Person.model_validate_json(self.ask(response_format=Person).choices[0].message.content)

    def test_tools(self) -> None:
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
        choice = self.ask(tools=tools, tool_choice="required").choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls[0].function.name == "get_weather"

    def test_errors_are_told_apart(self) -> None:
        import litellm

        with pytest.raises(litellm.ContextWindowExceededError):
            self.ask(messages=[{"role": "user", "content": "word " * 20_000}])
        with pytest.raises(litellm.NotFoundError):
            self.ask(model="openai/no-such-model")
        with pytest.raises(litellm.BadRequestError):
            self.ask(temperature=9)

    def test_anthropic_messages(self) -> None:
        import litellm

        answer = litellm.completion(
            model=f"anthropic/{MODEL}",
            api_base=os.environ["OCTAVO_URL"],
            api_key="EMPTY",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=20,
        )
        assert answer.choices[0].message.content


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "TOOLS_STRICT"])
def test_instructor(mode: str) -> None:
    import instructor
    import openai

    client = instructor.from_openai(openai.OpenAI(base_url=base(), api_key="EMPTY"), mode=instructor.Mode[mode])
    person = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Person,
        max_tokens=200,
        max_retries=0,
        temperature=0,
    )
    assert isinstance(person, Person)


class TestPydanticAI:
    def model(self, kind: str) -> Any:
        if kind == "anthropic":
            from anthropic import AsyncAnthropic
            from pydantic_ai.models.anthropic import AnthropicModel
            from pydantic_ai.providers.anthropic import AnthropicProvider

            client = AsyncAnthropic(base_url=os.environ["OCTAVO_URL"], api_key="EMPTY")
            return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))
        from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
        from pydantic_ai.providers.openai import OpenAIProvider

        provider = OpenAIProvider(base_url=base(), api_key="EMPTY")
        return (OpenAIChatModel if kind == "chat" else OpenAIResponsesModel)(MODEL, provider=provider)

    @pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
    def test_text(self, kind: str) -> None:
        from pydantic_ai import Agent

        agent = Agent(self.model(kind), instructions="Be brief.", model_settings={"max_tokens": 20, "temperature": 0})
        assert agent.run_sync(QUESTION).output

    @pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
    def test_output_of_a_type(self, kind: str) -> None:
        from pydantic_ai import Agent

        settings: Any = {"max_tokens": 200, "temperature": 0}
        agent = Agent(self.model(kind), output_type=Person, model_settings=settings, retries=0)
        assert isinstance(agent.run_sync(QUESTION).output, Person)


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_openai_agents(kind: str) -> None:
    import openai
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )

    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=base(), api_key="EMPTY")
    model = (OpenAIChatCompletionsModel if kind == "chat" else OpenAIResponsesModel)(model=MODEL, openai_client=client)
    called: list[str] = []

    @function_tool
    def weather(city: str) -> str:
        """How it is outside."""
        called.append(city)
        return get_weather(city)

    agent = Agent(
        name="Weather",
        instructions="Answer with the weather.",
        model=model,
        tools=[weather],
        model_settings=ModelSettings(tool_choice="required", max_tokens=80, temperature=0, parallel_tool_calls=False),
    )
    result = Runner.run_sync(agent, "What is the weather in Paris?", max_turns=3)
    assert called
    assert result.final_output
