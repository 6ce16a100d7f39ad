"""Fields that a body has and an API does not: told of, unless an answer without them would be wrong."""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from octavo.server.errors import ApiError, invalid
from octavo.server.schema.base import Body

MAX_UNKNOWN = 64
"""Unknown fields in a body. Each is compared with those that are known."""

MAX_NAMED = 8
"""Unknown fields that a warning names."""

MAX_NAME = 64
"""Characters of a name in a warning."""

MARKS = (
    "guided",
    "grammar",
    "bnf",
    "lark",
    "regex",
    "pattern",
    "schema",
    "json",
    "format",
    "structur",
    "constrain",
)
"""What the names of constraints contain."""

CONSTRAINTS = ("response_format", "structured_outputs", "allowed_token_ids", "bad_words")
"""Fields of which a misspelt name must not be passed over."""


def unknown_fields(model: type[Body], body: Mapping[str, Any]) -> str:
    """A warning of the fields that would be ignored, for a header: ASCII, one line, bounded; empty without any.

    Raises:
        ApiError: 400: a field looks like a constraint, and who sends one relies on it; or there are very many.
    """
    known = _names(model)
    unknown = [name for name in body.keys() - known if body[name] is not None]
    if not unknown or model.model_config.get("extra") != "ignore":
        return ""
    if len(unknown) > MAX_UNKNOWN:
        raise invalid(f"There are {len(unknown)} fields that this API does not have.")
    unknown = [name for name in body if name in unknown]
    if model.generates:
        for name in unknown:
            if _constrains(name):
                raise _not_ignored(model, name)
    named = ", ".join(f"{_ascii(name)}{_suggestion(model, name)}" for name in unknown[:MAX_NAMED])
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    return f"unknown fields ignored: {named}{more}"


def _constrains(name: str) -> bool:
    plain = name[:MAX_NAME].lower().replace("information", "")
    return any(mark in plain for mark in MARKS) or bool(difflib.get_close_matches(plain, CONSTRAINTS, 1, 0.8))


def _not_ignored(model: type[Body], name: str) -> ApiError:
    shown = _ascii(name)
    message = f"'{shown}' is no field of this API, and to ignore what looks like a constraint would change the answer"
    wanted = (model.schema_field, "structured_outputs")
    supported = [known for known in wanted if known.partition(".")[0] in _names(model)]
    instead = f"; constraints are set with {' or '.join(supported)}" if supported else ""
    return invalid(f"{message}{_suggestion(model, name)}{instead}.", shown)


@lru_cache(256)
def _names(model: type[Body]) -> frozenset[str]:
    """As clients write them."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


@lru_cache(1024)
def _suggestion(model: type[Body], name: str) -> str:
    if len(name) > MAX_NAME:
        return ""
    close = difflib.get_close_matches(name.lower(), _names(model), 1, 0.75)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _ascii(name: str) -> str:
    """A name as it may stand in a header and in a line of a log."""
    escaped = name[: MAX_NAME + 1].encode("ascii", "backslashreplace").decode()
    plain = "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in escaped)
    return plain if len(plain) <= MAX_NAME else f"{plain[: MAX_NAME - 3]}..."
