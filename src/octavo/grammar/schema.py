"""JSON schemas before they are compiled: whether that can be tried at all, and where in one a failure lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from octavo.grammar.errors import GrammarError

MAX_DEPTH = 100
"""Objects and lists in each other."""

MAX_VALUES = 10_000
"""Keywords, enumerated values and all other members together: ten times as many as OpenAI's API takes."""

MAX_ANNOTATIONS = 256
"""Members that are no keywords, by their names: each is compared with those that are."""

UNKNOWN = frozenset(
    {"divisibleBy", "disallow", "extends", "contentEncoding", "contentMediaType", "contentSchema", "x-guidance"}
)
"""Keywords that would be ignored: of drafts that nobody reads any more, and of what is written in strings; and one that
would turn others off."""

_SINGLE = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def check_schema(schema: Any, path: str) -> None:
    """Refuse what is no schema, or would take too long to compile.

    Raises:
        GrammarError: with the path.
    """
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"a JSON schema is an object, not {_kind(schema)}", path)
    check_size(schema, path, "the schema")
    others: set[str] = set()
    for where, each in _with_subschemas(schema, path):
        if unknown := sorted(UNKNOWN & each.keys()):
            raise GrammarError(f"the keyword {unknown[0]!r} is not supported", where)
        for key in each.keys() - KEYWORDS - others:
            if (meant := misspelt(key)) is not None:
                raise GrammarError(f"{key!r} is no keyword and would be ignored; did you mean {meant!r}?", where)
            others.add(key)
        if len(others) > MAX_ANNOTATIONS:
            raise GrammarError(f"there are more than {MAX_ANNOTATIONS} different members that are no keywords", path)


def check_size(value: Any, path: str, what: str) -> None:
    """Refuse what is too deep or too large. Raises GrammarError, whose message begins with `what`."""
    level, depth, count = [value], 0, 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise GrammarError(f"{what} is nested more than {MAX_DEPTH} levels deep", path)
        children: list[Any] = []
        for each in level:
            members = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            children.extend(members)
            count += len(members)
            if count > MAX_VALUES:
                raise GrammarError(f"{what} has more than {MAX_VALUES} keywords and values", path)
        level = children


def subschemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas that stand directly in a schema, with their paths; first those that others refer to."""
    for name in _MAPS:
        if isinstance(value := schema.get(name), dict):
            yield from ((f"{path}.{name}.{key}", each) for key, each in value.items() if isinstance(each, dict))
    for name in _SINGLE:
        if isinstance(value := schema.get(name), dict):
            yield f"{path}.{name}", value
    for name in _LISTS:
        if isinstance(value := schema.get(name), list):
            yield from ((f"{path}.{name}[{place}]", each) for place, each in enumerate(value) if isinstance(each, dict))


def _with_subschemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    waiting = [(path, schema)] if isinstance(schema, dict) else []
    while waiting:
        where, each = waiting.pop()
        yield where, each
        waiting.extend(subschemas(each, where))


KEYWORDS = frozenset(
    {"type", "enum", "const", "format", "pattern", "required", "uniqueItems", "multipleOf", "minLength", "maxLength"}
    | {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minItems",
        "maxItems",
        "minContains",
        "maxContains",
    }
    | {"minProperties", "maxProperties", "dependentRequired", "dependencies"}
    | {*_SINGLE, *_LISTS, *_MAPS}
)
"""Those that say what is valid."""


def misspelt(key: str) -> str | None:
    """The keyword that was meant by one that is none: with other capitals, or, if it is long, with letters swapped, one
    missing or one too many. Everything else is an annotation of somebody's own."""
    if len(key) > _LONGEST or key in KEYWORDS:
        return None
    letters = "".join(sorted(key.lower()))
    found = _BY_LETTERS.get(letters)
    if found is not None and (len(key) >= _LONG or found.lower() == key.lower()):
        return found
    if len(key) < _LONG:
        return None
    fewer = (_BY_LETTERS.get(letters[:place] + letters[place + 1 :]) for place in range(len(letters)))
    return _WITHOUT_A_LETTER.get(letters) or next(filter(None, fewer), None)


_LONG = 6
_BY_LETTERS = {"".join(sorted(keyword.lower())): keyword for keyword in sorted(KEYWORDS)}
_WITHOUT_A_LETTER = {
    letters[:place] + letters[place + 1 :]: keyword
    for letters, keyword in _BY_LETTERS.items()
    if len(keyword) > _LONG
    for place in range(len(letters))
}
_LONGEST = max(map(len, KEYWORDS)) + 1


_OPEN = frozenset(("$ref", "additionalProperties", "allOf", "anyOf", "minProperties", "oneOf", "patternProperties"))
"""Keywords by which an object may have further members."""


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema in which an object that names its members has no others, unless it says so.

    What is valid for it is valid for the schema. Left to itself a model makes up members, of which small ones find no
    end. A schema that puts objects together from several ones stays as it is.
    """
    parts = _with_subschemas(schema, "")
    composed = any("allOf" in each or (_REFERS & each.keys() and "properties" in each) for _, each in parts)
    return schema if composed else _closed(schema)


_REFERS = {"$ref", "anyOf", "oneOf"}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    result = _with_each(schema, _closed)
    properties, required = result.get("properties"), result.get("required", [])
    named = isinstance(properties, dict) and isinstance(required, list) and all(name in properties for name in required)
    if named and not _OPEN & result.keys():
        result["additionalProperties"] = False
    return result


_ANNOTATIONS = frozenset(("$comment", "default", "deprecated", "description", "examples", "title"))


def without_annotations(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what is for people: it may be long, and constrains nothing."""
    kept = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
    return _with_each(kept, without_annotations)


def _with_each(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A schema of which those are changed that stand directly in it."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, dict) else value

    result = dict(schema)
    for name in result.keys() & {*_SINGLE, *_LISTS}:
        value = result[name]
        result[name] = [changed(each) for each in value] if isinstance(value, list) else changed(value)
    for name in result.keys() & {*_MAPS}:
        if isinstance(value := result[name], dict):
            result[name] = {key: changed(each) for key, each in value.items()}
    return result


def locate(schema: Any, path: str, failure: Callable[[Any], str | None]) -> str:
    """Where in a schema it fails: the innermost schema that fails by itself in the same way.

    Args:
        failure: what is wrong with a schema, None if nothing is.
    """
    wrong = failure(schema)
    shared = {name: schema[name] for name in ("$schema", "$defs", "definitions") if name in schema}
    while True:
        for where, each in subschemas(schema, path):
            if failure(shared | each) == wrong:
                schema, path = each, where
                break
        else:
            return path


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
