"""What Anthropic's API asks for beside a conversation: tools, thinking, and what the answer must look like."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from octavo.grammar import constraint
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError
from octavo.server.schema.base import Body, Ignored, WrongElement
from octavo.server.schema.constraints import NOTHING_ELSE, refused
from octavo.server.schema.template import effort_variables
from octavo.server.schema.tools import MAX_TOOLS, Function, FunctionName, Mode, NamedChoice, ToolFields

FIELDS = ToolFields(schema="input_schema", name="name")

MIN_BUDGET = 1024
"""Tokens; Anthropic's."""


class ToolDefinition(Body):
    """A tool of the client's. Those that Anthropic's servers run, or its models were taught, are refused."""

    schema_field = "input_schema"

    type: Literal["custom"] = "custom"
    name: str
    description: str = ""
    input_schema: dict[str, Any] = Field(description="JSON schema of an object.")
    strict: bool = Field(False, description="Refuse a schema that input cannot be kept to.")
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None
    output_schema: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _is_the_clients_own(cls, data: Any) -> Any:
        """Asked first: other kinds have other fields."""
        if isinstance(data, dict) and data.get("type", "custom") not in ("custom", None):
            message = f"there are no tools of type {data['type']!r:.80}, only custom ones, with 'input_schema'"
            raise WrongElement(message, "type")
        return data

    def function(self) -> Function:
        """The same in OpenAI's words."""
        return Function(name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict)


ToolDefinitions = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)]


class ToolDecision(Body):
    """Whether tools may or must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description='Of the tool, for type "tool".')
    disable_parallel_tool_use: bool = Field(False, description="Whether there is one call at most.")

    @model_validator(mode="after")
    def _says_which(self) -> "ToolDecision":
        if self.type == "tool" and self.name is None:
            raise ValueError("type \"tool\" needs 'name', the tool's")
        return self

    @property
    def choice(self) -> Mode | NamedChoice:
        """The same in OpenAI's words."""
        if self.name is not None and self.type == "tool":
            return NamedChoice(function=FunctionName(name=self.name))
        modes: dict[str, Mode] = {"auto": "auto", "any": "required", "none": "none"}
        return modes[self.type]


class Thinking(Body):
    """Whether the model thinks before it answers, and whether the answer says what."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=MIN_BUDGET, description='Below max_tokens; needed for type "enabled".')
    display: Literal["summarized", "omitted"] = Field("summarized", description="Nothing is left out of summaries.")

    @model_validator(mode="after")
    def _has_a_budget(self) -> "Thinking":
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("type \"enabled\" needs 'budget_tokens'")
        return self


class JsonFormat(Body):
    """JSON of a schema."""

    model_config = NOTHING_ELSE

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")

    def constraint(self, field: str) -> Constraint:
        """The same as a grammar. Raises ApiError: it cannot be kept to."""
        try:
            return constraint.json_schema(self.schema_, f"{field}.schema")
        except GrammarError as error:
            raise refused(error) from error


class OutputConfig(Body):
    """How much to work on the answer, and what it must look like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None

    def constraint(self) -> Constraint | None:
        """What the answer must look like. Raises ApiError: it cannot be kept to."""
        return None if self.format is None else self.format.constraint("output_config.format")


def thinking_variables(thinking: Thinking | None, output: OutputConfig | None) -> dict[str, Any]:
    """How much to think, as chat templates call it."""
    effort = None if output is None else output.effort
    if thinking is None:
        return {} if effort is None else {"reasoning_effort": effort}
    if thinking.type == "disabled":
        return effort_variables("none")
    return effort_variables(effort) if effort else {"enable_thinking": True, "thinking": True}
