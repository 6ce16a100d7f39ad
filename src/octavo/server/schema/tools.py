"""The functions that a model may call, and whether it must."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from octavo.deployments.request import ToolUse
from octavo.grammar.errors import GrammarError
from octavo.grammar.schema import check_schema
from octavo.server.errors import invalid
from octavo.server.schema.base import Body, Ignored
from octavo.server.schema.constraints import refused
from octavo.text.tools import Tool

MAX_TOOLS = 1024
"""OpenAI's API takes 128."""

MAX_TOOL_NAME = 128
"""Characters: Anthropic's API takes as many, OpenAI's 64."""

_NAME = re.compile(rf"[a-zA-Z0-9_.-]{{1,{MAX_TOOL_NAME}}}")


class Function(Body):
    """A function of the client's."""

    schema_field = "parameters"

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of an object; no parameters if absent.")
    strict: bool = Field(False, description="Refuse a schema that arguments cannot be kept to.")
    output_schema: Ignored = None


class FunctionTool(Body):
    """A tool. Functions are the only kind: tools that a server runs are refused."""

    schema_field = "function.parameters"

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedChoice(Body):
    """A certain function must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Body):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedChoice(Body):
    """Only some of the tools may be called, or one of them must be."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Mode = Literal["none", "auto", "required"]
ToolChoice = Mode | NamedChoice | AllowedChoice
Functions = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class ToolFields(NamedTuple):
    """What an API calls the fields that are about tools, for errors.

    Attributes:
        tools, choice: the two fields themselves.
        schema: a function's parameters.
        name: in a choice, where the function's name is.
        allowed: in a choice, where the functions are that may be called.
    """

    tools: str = "tools"
    choice: str = "tool_choice"
    schema: str = "parameters"
    name: str = "function.name"
    allowed: str = "allowed_tools.tools"


FIELDS = ToolFields()
"""Those of chat completions."""


def function_tools(functions: Sequence[Function], paths: Sequence[str], fields: ToolFields = FIELDS) -> list[Tool]:
    """The tools that a client offers, checked.

    Args:
        paths: where each function is in the request, for errors.

    Raises:
        ApiError: 400: a name that is none or is there twice, or parameters that are no schema of an object.
    """
    tools: dict[str, Tool] = {}
    for function, path in zip(functions, paths, strict=True):
        if not _NAME.fullmatch(function.name):
            message = f"'{path}.name' must be 1 to {MAX_TOOL_NAME} letters, digits, dots, dashes or underscores."
            raise invalid(message, f"{path}.name")
        if function.name in tools:
            raise invalid(f"'{path}.name' is {function.name!r}, the name of another tool.", f"{path}.name")
        schema = f"{path}.{fields.schema}"
        tools[function.name] = Tool(
            name=function.name,
            description=function.description,
            parameters=_parameters(function.parameters, schema),
            strict=function.strict,
            path=schema,
        )
    return list(tools.values())


def _parameters(schema: dict[str, Any] | None, path: str) -> dict[str, Any]:
    if not schema:
        return {"type": "object", "properties": {}}
    try:
        check_schema(schema, path)
    except GrammarError as error:
        raise refused(error) from error
    if schema.get("type", "object") != "object":
        raise invalid(f"'{path}.type' must be \"object\": arguments are an object.", f"{path}.type")
    return {"type": "object", **schema}


def tool_use(
    tools: Sequence[Tool], choice: ToolChoice | None, *, parallel: bool, fields: ToolFields = FIELDS
) -> ToolUse | None:
    """What the model may call, None for nothing. Raises ApiError: a choice that names no tool."""
    if choice == "none":
        return None
    if not tools:
        if choice not in (None, "auto"):
            raise invalid(f"'{fields.choice}' needs '{fields.tools}'.", fields.choice)
        return None
    known = {tool.name: tool for tool in tools}
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        _require_known(name, known, f"{fields.choice}.{fields.name}")
        return ToolUse(tools=tools, required=True, named=name, parallel=False, field=fields.tools)
    if isinstance(choice, AllowedChoice):
        names = [each.function.name for each in choice.allowed_tools.tools]
        for number, name in enumerate(names):
            _require_known(name, known, f"{fields.choice}.{fields.allowed}[{number}].{fields.name}")
        some, required = [tool for tool in tools if tool.name in names], choice.allowed_tools.mode == "required"
        return ToolUse(tools=some, required=required, parallel=parallel, field=fields.tools)
    return ToolUse(tools=tools, required=choice == "required", parallel=parallel, field=fields.tools)


def _require_known(name: str, known: dict[str, Tool], path: str) -> None:
    if name not in known:
        raise invalid(f"'{path}' is {name!r}, but the tools are {', '.join(list(known)[:20])}.", path)
