"""Grammars of arguments that are written one by one, not as a JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from octavo.errors import OctavoError
from octavo.grammar.constraint import regex_between_slashes
from octavo.grammar.lark import ANYTHING, Lark, either, escaped
from octavo.text.formats.arguments import types_of
from octavo.text.tools import Tool

_OF_THE_WHOLE = frozenset(
    {"$ref", "anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "propertyNames"}
    | {"dependentRequired", "dependentSchemas", "dependencies", "minProperties", "maxProperties"}
)
_OF_STRINGS = frozenset({"type", "minLength", "maxLength", "pattern"})
_NOTES = frozenset({"title", "description", "default", "examples", "format", "$comment", "deprecated"})


class Argument(NamedTuple):
    """An argument that a tool takes; `schema` is complete by itself."""

    key: str
    schema: Mapping[str, Any]
    required: bool


def arguments_of(tool: Tool) -> list[Argument]:
    """What a tool takes. Raises OctavoError for a schema that says more than what each argument is."""
    parameters = tool.parameters
    if found := sorted(_OF_THE_WHOLE & parameters.keys()):
        raise OctavoError(
            f"Tool {tool.name!r}: its parameters have {', '.join(found)}, to which this model's format of tool calls "
            "cannot be held: describe each of its properties by itself."
        )
    required = parameters.get("required", ())
    properties: dict[str, Any] = {**dict.fromkeys(required, True), **parameters.get("properties", {})}
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return [
        Argument(key, {**shared, **({} if schema is True else schema)}, key in required)
        for key, schema in properties.items()
        if schema is not False
    ]


def written_value(lark: Lark, tool: Tool, argument: Argument, end: str, *others: str) -> str:
    """A value between tags and what comes after it, its end: strings stand by themselves, all else is JSON.

    `others`: what parsers also take for the end, so that strings have none of it.

    Raises OctavoError for a schema to which strings by themselves cannot be held.
    """
    schema, types = argument.schema, types_of(tool, argument.key)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return f"{either(map(lark.literal, texts))} {lark.literal(end)}"
    if types and "string" not in types:
        return f"{lark.json(schema)} {lark.literal(end)}"
    inner = "|".join(map(escaped, (end, *others)))
    without = f"(?s:.*)({inner})(?s:.*){escaped(end)}"
    if types != {"string"} or not schema.keys() & (_OF_STRINGS - {"type"}):
        return lark.up_to(end, without=without)
    if extra := schema.keys() - _OF_STRINGS - _NOTES:
        raise OctavoError(
            f"Tool {tool.name!r}: its argument {argument.key!r} has {', '.join(sorted(extra))} beside its type, to "
            "which this model's format of tool calls cannot be held: leave it out."
        )
    length = f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})"
    return lark.up_to(end, before=length, also=_searched(schema.get("pattern")), without=without)


def _searched(pattern: str | None) -> str:
    """A lexeme of all that has the pattern in it, as JSON schemas mean it. The pattern stands by itself, so that one
    that is wrong is found out."""
    if pattern is None:
        return ""
    anything = f"/{ANYTHING}/"
    before = "" if pattern.startswith("^") else anything
    after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else anything
    body = pattern.removeprefix("^")
    body = regex_between_slashes(body if after else body.removesuffix("$"), "pattern")
    return " ".join(filter(None, (before, f"/{body}/" if body else "", after)))
