"""Fields that a body has and an API does not: told of, unless an answer without them would be wrong."""

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from octavo.server.errors import ApiError, invalid
from octavo.server.one_line import one_line
from octavo.server.schema.base import NOT_SUPPORTED, Body
from octavo.server.schema.hints import MARKS, instead_of

MAX_UNKNOWN = 64
"""Unknown fields in a body, and members of objects that are unknown themselves. Each is compared with those that are
known."""

MAX_NAMED = 8
"""Unknown fields that a warning names."""

MAX_NAME = 64
"""Characters of a name in a warning."""

CONSTRAINTS = ("response_format", "structured_outputs", "allowed_token_ids", "bad_words", "grammar", "regex")
"""Fields of which a misspelt name must not be passed over, whatever the API."""

WRAPPER = "extra_body"
"""The argument of OpenAI's SDK, which sends what is in it beside the other fields."""


class Unknown(NamedTuple):
    """A field that is unknown.

    Attributes:
        model: of the object that has it, or has an object that does. path: of the former, with a dot at the end; empty
            for the body. inside: the latter's, from there.
    """

    model: type[Body]
    path: str
    name: str
    value: Any = None
    inside: str = ""

    @property
    def shown(self) -> str:
        """The whole path."""
        return f"{self.path}{_ascii(self.inside)}{_ascii(self.name)}"


def unknown_fields(body: Body, sent: Mapping[str, Any]) -> str:
    """A warning of the fields that would be ignored, for a header: ASCII, one line, bounded; empty without any.

    Args:
        sent: what the body was made from.

    Raises:
        ApiError: 400: a field looks like a constraint, and who sends one relies on it; or there are very many.
    """
    found: dict[tuple[type[Body], str], Unknown] = {}
    _collect(body, sent, "", found)
    if not found:
        return ""
    if len(found) > MAX_UNKNOWN:
        raise invalid(f"There are {len(found)} fields that this API does not have.")
    unknown = list(found.values())
    if body.generates:
        for each in unknown:
            if _constrains(each.model, each.name[:MAX_NAME]):
                raise _not_ignored(type(body), each)
        _check_inside(type(body), [each for each in unknown if not each.path])
    named = ", ".join(f"{each.shown}{_suggestion(each)}" for each in unknown[:MAX_NAMED])
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    return f"unknown fields ignored: {named}{more}"


def _collect(body: Body, sent: Mapping[str, Any], path: str, found: dict[tuple[type[Body], str], Unknown]) -> None:
    """The unknown fields of an object, and of those in it that have a model: the instance tells which it is. A field
    that several elements of a list have counts once."""
    model = type(body)
    if (known := _known(model)) is None:
        return
    for name, value in sent.items():
        if (attribute := known.get(name)) is None:
            if value is not None and (model, name) not in found:
                found[model, name] = Unknown(model, path, name, value)
        elif type(value) is dict:
            if isinstance(inner := getattr(body, attribute), Body):
                _collect(inner, value, f"{path}{name}.", found)
        elif type(value) is list:
            elements = getattr(body, attribute)
            if isinstance(elements, list) and elements and isinstance(elements[0], Body):
                for number, (element, each) in enumerate(zip(elements, value, strict=True)):
                    if isinstance(element, Body) and isinstance(each, dict):
                        _collect(element, each, f"{path}{name}[{number}].", found)


def _check_inside(model: type[Body], unknown: list[Unknown]) -> None:
    """Refuse constraints in objects that are unknown as a whole: another API's."""
    count = 0
    for each in unknown:
        if isinstance(each.value, dict) and "metadata" not in each.name.lower():
            for inside, name in _members(each.value, f"{each.name}."):
                count += 1
                if count > MAX_UNKNOWN:
                    message = f"'{each.shown}' is no field of this API, and has too many members to see what ignoring"
                    raise invalid(f"{message} it would change.", each.shown)
                if _constrains(model, name[:MAX_NAME]):
                    raise _not_ignored(model, Unknown(model, "", name, inside=inside))


def _members(value: Mapping[str, Any], path: str, levels: int = 2) -> Iterator[tuple[str, str]]:
    """The names of an object's members and of theirs, and where these are."""
    for name, member in value.items():
        if member is not None:
            yield path, name
            if levels > 1 and isinstance(member, dict):
                yield from _members(member, f"{path}{name}.", levels - 1)


@lru_cache(1024)
def _constrains(model: type[Body], name: str) -> bool:
    plain = name.lower().replace("information", "")
    return _is_marked(plain) or bool(difflib.get_close_matches(plain, _constraints(model), 1, 0.8))


def _is_marked(name: str) -> bool:
    return any(mark in name for mark in MARKS)


@lru_cache(256)
def _constraints(model: type[Body]) -> frozenset[str]:
    """The names of constraints that an object can have, and of those that any body can."""
    return frozenset((*CONSTRAINTS, *filter(_is_marked, _working(model))))


def _not_ignored(model: type[Body], unknown: Unknown) -> ApiError:
    """Args: model: of the whole body."""
    message = (
        f"'{unknown.shown}' is no field of this API, and to ignore what looks like a constraint would change the answer"
    )
    inner, schema = unknown.model, unknown.model.schema_field
    suggestion = _suggestion(unknown)
    if inner is not model and schema.partition(".")[0] in _attributes(inner):
        instead = f"; its schema is set with {unknown.path}{schema}"
    elif unknown.path and suggestion:
        instead = ""
    else:
        supported = [
            known
            for known in instead_of(unknown.name[:MAX_NAME], model.schema_field)
            if known.partition(".")[0] in _attributes(model)
        ]
        instead = f"; constraints are set with {' or '.join(supported)}" if supported else ""
    return invalid(f"{message}{suggestion}{instead}.", unknown.shown)


@lru_cache(256)
def _attributes(model: type[Body]) -> dict[str, str]:
    """The attributes of an object by the names of its members, as clients write them."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


@lru_cache(256)
def _known(model: type[Body]) -> dict[str, str] | None:
    """The same; None if it does not matter what else there is, or is refused already."""
    matters = not model.has_more and model.model_config.get("extra") == "ignore"
    return _attributes(model) if matters else None


@lru_cache(256)
def _working(model: type[Body]) -> frozenset[str]:
    """The names of an object's members without those that are known and refused: these are no help."""
    refused = {field.alias or name for name, field in model.model_fields.items() if field.description == NOT_SUPPORTED}
    return frozenset(_attributes(model).keys() - refused - model.moved.keys())


def _suggestion(unknown: Unknown) -> str:
    if not unknown.path and f"{unknown.inside}{unknown.name}.".startswith(f"{WRAPPER}."):
        return f" (what is in '{WRAPPER}' belongs beside the other fields)"
    close = _close(unknown.model, unknown.name) if len(unknown.name) <= MAX_NAME else ""
    return f" (did you mean '{unknown.path}{close}'?)" if close else ""


@lru_cache(1024)
def _close(model: type[Body], name: str) -> str:
    return next(iter(difflib.get_close_matches(name.lower(), _working(model), 1, 0.75)), "")


def _ascii(name: str) -> str:
    return one_line(name, MAX_NAME)
