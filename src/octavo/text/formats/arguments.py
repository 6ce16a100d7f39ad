"""Arguments that are not written as JSON become JSON, with the types that the tool's schema gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.text.formats.reader import Reader
from octavo.text.tools import Tool

_SCHEMAS_LOOKED_AT = 100
_NULLS = frozenset({"null", "None"})
_BOOLEANS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_JSON_TYPES: dict[type, str] = {dict: "object", list: "array", int: "integer", float: "number"}

Types = frozenset[str]
"""Names of JSON types, as schemas have them; empty where a schema does not say."""


def types_of(tool: Tool | None, argument: str) -> Types:
    """The types that an argument of a tool may have; empty if nothing is known of it."""
    parameters: Mapping[str, Any] = tool.parameters if tool else {}
    properties = parameters.get("properties")
    found: set[str] = set()
    pending = [properties.get(argument)] if isinstance(properties, Mapping) else []
    for _ in range(_SCHEMAS_LOOKED_AT):
        if not pending:
            break
        schema = pending.pop()
        if not isinstance(schema, Mapping):
            continue
        kinds = schema.get("type")
        found.update([kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else ())
        if not kinds:
            values = [schema["const"]] if "const" in schema else schema.get("enum", ())
            found.update(map(_type, values))
        for key in ("anyOf", "oneOf", "allOf"):
            pending += schema.get(key) or ()
        pending.append(_referred(parameters, schema.get("$ref")))
    return frozenset(found)


def _type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return _JSON_TYPES.get(type(value), "string")


def _fits(value: Any, types: Types) -> bool:
    """Whether a value that is written as JSON is meant as such: strings are not, where they may stand by themselves."""
    kind = _type(value)
    if kind == "string":
        return bool(types) and "string" not in types
    if kind in ("integer", "number") and types:
        return "number" in types or ("integer" in types and value == int(value))
    return not types or kind in types


def _referred(root: Mapping[str, Any], reference: Any) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    place: Any = root
    for step in reference[2:].split("/"):
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def to_json(text: str, types: Types) -> str:
    """What is written as `text` as JSON of one of these types. What is none of them is a string."""
    stripped = text.strip()
    if stripped in _NULLS and (not types or "null" in types):
        return "null"
    if stripped in _BOOLEANS and (not types or "boolean" in types):
        return _BOOLEANS[stripped]
    if types != {"string"}:
        try:
            value = msgspec.json.decode(stripped)
        except (ValueError, RecursionError):
            pass
        else:
            if _fits(value, types):
                return stripped
    return json.dumps(text if not types or "string" in types else stripped, ensure_ascii=False)


class ObjectWriter:
    """Writes the arguments of the reader's last call one by one, as JSON."""

    def __init__(self, reader: Reader, tool: Tool | None) -> None:
        self._reader = reader
        self._tool = tool
        self._before = "{"

    def key(self, key: str) -> Types:
        """The next argument's name. The types that it may have."""
        self._reader.arguments(f"{self._before}{json.dumps(key, ensure_ascii=False)}: ")
        self._before = ", "
        return types_of(self._tool, key)

    def raw(self, text: str) -> None:
        """A value, or a piece of one, that is JSON already."""
        self._reader.arguments(text)

    def characters(self, piece: str) -> None:
        """A piece of a string, between its quotes."""
        self._reader.arguments(json.dumps(piece, ensure_ascii=False)[1:-1])

    def close(self) -> None:
        """There are no more."""
        self._reader.arguments("{}" if self._before == "{" else "}")
