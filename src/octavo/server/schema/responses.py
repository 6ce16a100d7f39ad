"""POST /v1/responses: the request."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from octavo.deployments.request import ToolUse
from octavo.grammar import constraint
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError
from octavo.server.errors import invalid
from octavo.server.schema.base import Body, Unsupported, WrongElement
from octavo.server.schema.constraints import NOTHING_ELSE, refused
from octavo.server.schema.response_items import ItemList
from octavo.server.schema.sampling import SamplingBody, StopList
from octavo.server.schema.template import Effort, Variables
from octavo.server.schema.tools import (
    MAX_TOOLS,
    AllowedChoice,
    AllowedTools,
    Function,
    FunctionName,
    Mode,
    NamedChoice,
    ToolChoice,
    ToolFields,
    function_tools,
    tool_use,
)

MAX_TOP_LOGPROBS = 20
MAX_METADATA = 16

FIELDS = ToolFields(name="name", allowed="tools")

ResponseId = Annotated[str, Field(min_length=1, max_length=256)]
Key = Annotated[str, Field(max_length=64)]
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


MOVED = {
    "messages": ("input",),
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_output_tokens",),
    "response_format": ("text.format",),
    "verbosity": ("text.verbosity",),
    "reasoning_effort": ("reasoning.effort",),
    "functions": ("tools",),
    "function_call": ("tool_choice",),
    "logprobs": ("include",),
    "max_new_tokens": ("max_output_tokens",),
    "stop_sequences": ("stop",),
    "system": ("instructions",),
}
"""Fields of other APIs, mostly of the chat API."""


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]
    strict: bool = Field(
        False,
        description="Refuse a schema that arguments cannot be kept to; if absent, they are where they can be.",
    )

    def echo(self) -> dict[str, Any]:
        """As the response repeats it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description or None,
            "parameters": self.parameters,
            "strict": self.strict if "strict" in self.model_fields_set else None,
        }


def _of_type(model: type[Body], what: str) -> Callable[[Any], Any]:
    """Functions alone, and the others refused by their names."""

    def read(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise WrongElement(f"{what} of type {kind!r} is not supported, only function", "type")
        return model.model_validate(value)

    return read


Tool = Annotated[FunctionTool, PlainValidator(_of_type(FunctionTool, "a tool"), json_schema_input_type=FunctionTool)]


class FunctionChoice(Body):
    """A certain function must be called."""

    type: Literal["function"]
    name: str

    def choice(self) -> NamedChoice:
        """As the chat API has it."""
        return NamedChoice(function=FunctionName(name=self.name))


class SomeTools(Body):
    """Only some of the tools may be called, or one of them must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]

    def choice(self) -> AllowedChoice:
        """As the chat API has it."""
        tools = [each.choice() for each in self.tools]
        return AllowedChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=self.mode, tools=tools))


def _tool_choice(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise WrongElement(f"a choice of type {kind!r} is not supported, only function and allowed_tools", "type")
    return value


Choice = Annotated[Mode | FunctionChoice | SomeTools, BeforeValidator(_tool_choice)]


class TextFormat(Body):
    """What the text must look like."""

    model_config = NOTHING_ELSE

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The schema is kept to either way.")

    @model_validator(mode="before")
    @classmethod
    def _is_flat(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("json_schema"), dict):
            raise WrongElement("this is the chat API's; what is in it belongs beside 'type'", "json_schema")
        return data

    @model_validator(mode="after")
    def _has_its_schema(self) -> "TextFormat":
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise ValueError("a format of type json_schema needs 'name' and 'schema'")
        if self.type != "json_schema" and self.schema_ is not None:
            raise ValueError(f"a format of type {self.type} has no 'schema'; the type for it is json_schema")
        return self

    def constraint(self) -> Constraint | None:
        """The same as a grammar. Raises ApiError: it cannot be kept to."""
        try:
            match self.type:
                case "json_object":
                    return constraint.any_object("text.format")
                case "json_schema":
                    return constraint.json_schema(self.schema_, "text.format.schema")
        except GrammarError as error:
            raise refused(error) from error
        return None

    def echo(self) -> dict[str, Any]:
        """As the response repeats it."""
        if self.type != "json_schema":
            return {"type": self.type}
        described = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": self.type, **described}


class TextConfig(Body):
    """What the text is like."""

    format: TextFormat = Field(TextFormat.model_validate({"type": "text"}))
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Given to the chat template.")


class ReasoningConfig(Body):
    """How the model thinks."""

    effort: Effort | None = Field(None, description="How much to think; what that does is up to the model.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Items of reasoning have all of it, and no summary."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="Old name of summary.")


class StreamOptions(Body):
    """What streams are like."""

    include_obfuscation: bool = Field(False, description="Nothing is added to events, whatever is asked for.")


def _not_too_many(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_METADATA:  # before each is looked at
        raise ValueError(f"there may be at most {MAX_METADATA} pairs, not {len(value)}")
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    BeforeValidator(_not_too_many),
    Field(max_length=MAX_METADATA),
]


class ResponsesRequest(SamplingBody):
    """POST /v1/responses"""

    schema_field = "text.format"
    moved = MOVED

    model: str = Field("", description="A name from /v1/models; the server's first model if absent.")
    input: ItemList
    instructions: str | None = Field(None, description="A system message, for this response alone.")
    previous_response_id: ResponseId | None = Field(None, description="Of a stored response, to go on with.")
    store: bool = Field(True, description="Whether the response can be asked for later, and gone on with.")
    background: bool = Field(False, description="Answer at once, and generate while nobody waits; needs store.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1, description="Of tools that the server runs: there are none.")
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: Choice | None = Field(None, description='Whether functions are called, and which; "auto" if absent.')
    parallel_tool_calls: bool = Field(True, description="Whether there may be several calls.")
    text: TextConfig = Field(TextConfig.model_validate({}))
    reasoning: ReasoningConfig = Field(ReasoningConfig.model_validate({}))
    include: list[Includable] = Field([], max_length=32, fail_fast=True)
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: Metadata = Field({})
    truncation: Literal["auto", "disabled"] = "disabled"
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None

    stop: StopList = Field([])
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Lower runs first; 0 if absent.")
    cache_salt: str = Field("", max_length=128, description="Requests share cached prefixes only under equal salts.")
    chat_template_kwargs: Variables = Field({}, description="Variables for the model's chat template.")

    conversation: Unsupported = None
    prompt: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None
    n: Literal[1] = 1

    @property
    def logprobs_wanted(self) -> int | None:
        """How many alternatives are reported for each token; None reports nothing."""
        return self.top_logprobs if "message.output_text.logprobs" in self.include else None

    def check(self) -> None:
        """Refuse fields that do not go together. Raises ApiError: 400."""
        if self.truncation == "auto":
            message = "'truncation' \"auto\" is not supported: a conversation that is too long is refused, not cut."
            raise invalid(message, "truncation")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
        if self.background and not self.store:
            raise invalid("'background' needs 'store': nobody could ask for the response.", "background")

    def constraint(self) -> Constraint | None:
        """What the answer must look like. Raises ApiError: it cannot be kept to, or two things are asked for."""
        wanted, other = self.text.format.constraint(), super().constraint()
        if wanted is not None and other is not None:
            raise invalid("'text.format' and 'structured_outputs' exclude each other.", "structured_outputs")
        return wanted or other

    def tool_use(self) -> ToolUse | None:
        """What the model may call. Raises ApiError: 400."""
        tools = function_tools(self.tools, [f"tools[{number}]" for number in range(len(self.tools))], FIELDS)
        wanted = self.tool_choice
        choice: ToolChoice | None = wanted.choice() if isinstance(wanted, FunctionChoice | SomeTools) else wanted
        return tool_use(tools, choice, parallel=self.parallel_tool_calls, fields=FIELDS)

    def echo(self) -> dict[str, Any]:
        """What responses repeat of their requests."""
        choice = self.tool_choice
        return {
            "background": self.background,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "prompt_cache_retention": self.prompt_cache_retention,
            "reasoning": {"effort": self.reasoning.effort, "summary": self.reasoning.summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.store,
            "text": {"format": self.text.format.echo(), "verbosity": self.text.verbosity or "medium"},
            "tool_choice": choice.model_dump() if isinstance(choice, Body) else choice or "auto",
            "tools": [tool.echo() for tool in self.tools],
            "top_logprobs": self.top_logprobs,
            "truncation": self.truncation,
            "user": self.user,
        }
