"""What clients ask an answer to look like, as grammars in llguidance's languages.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.grammar.errors import GrammarError, cause
from octavo.grammar.lark import quoted
from octavo.grammar.schema import check_schema, closed, without_annotations

MAX_CHOICES = 1_000
"""llguidance follows 2,000 branches at a time."""
MAX_SOURCE = 1 << 20
"""Characters of a regular expression or a grammar."""

WHITESPACE = r"( |\r?\n[ \t]{0,40})"
"""Between JSON's tokens, if a client asks for nothing else: a blank, or a new line with its indentation, as those write
it from whom models have learned. Without a bound small ones write blanks for ever."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like.

    Attributes:
        source: the grammar.
        field: the request's field that it comes from.
        schemas, parts: the JSON schemas and the other grammars in it by their paths in the request, so that an error
            can name the place.
        spelled: makes the same for a model in whose vocabulary these texts are special tokens, which are no text there
            but have ids; None where there are no such texts.
    """

    source: str
    field: str
    schemas: tuple[tuple[str, Any], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    spelled: Callable[[Mapping[str, int]], Constraint] | None = None


def any_object(field: str) -> Constraint:
    """A JSON object."""
    return json_schema({"type": "object"}, field)


def json_schema(schema: Any, field: str, *, whitespace: str | None = WHITESPACE) -> Constraint:
    """JSON that is valid for a schema (draft 2020-12, or the one that it names).

    Args:
        whitespace: a regular expression for what may stand between JSON's tokens; None is nothing.

    Raises:
        GrammarError: it is no schema, too large, or has keywords that cannot be kept.
    """
    return Constraint("start: " + embedded(schema, field, whitespace=whitespace), field, ((field, schema),))


def embedded(schema: Any, path: str, *, whitespace: str | None = WHITESPACE) -> str:
    """A schema as an expression of a Lark grammar. Raises GrammarError, as `json_schema` does."""
    check_schema(schema, path)
    options = {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    if schema is False:
        raise GrammarError("the schema is false, for which no JSON is valid", path)
    members = closed(schema) if isinstance(schema, dict) else {}  # true is valid for all
    text = _text({"x-guidance": options, **without_annotations(members)}, path)
    _check_length(text, path)
    return "%json " + text


def regex(pattern: str, field: str) -> Constraint:
    """Text that a regular expression matches as a whole: Rust's syntax, without lookaround and references."""
    source = regex_between_slashes(pattern, field)
    return Constraint(f"start: /{source}/" if source else 'start: ""', field)


def regex_between_slashes(pattern: str, field: str) -> str:
    """A client's regular expression as Lark writes it. Raises GrammarError."""
    from llguidance import regex_to_lark

    _check_length(pattern, field)
    source: str = regex_to_lark(characters(pattern, field), "d")  # digits are ASCII's, as everybody means it
    return source


def choice(options: Sequence[str], field: str) -> Constraint:
    """One of several texts."""
    if not 1 <= len(options) <= MAX_CHOICES:
        raise GrammarError(f"there must be 1 to {MAX_CHOICES} choices, not {len(options)}", field)
    return Constraint("start: " + " | ".join([_text(each, field) for each in options]), field)


def grammar(source: str, field: str) -> Constraint:
    """A grammar in Lark's syntax or in GBNF (EBNF with `root ::=`)."""
    from llguidance import grammar_from

    _check_length(source, field)
    if "x-guidance" in source:
        raise GrammarError("'x-guidance', which would turn keywords of schemas off, is not supported", field)
    try:
        return Constraint(grammar_from("grammar", characters(source, field)), field)
    except ValueError as error:
        raise GrammarError(cause(str(error)), field) from error


def either(first: Constraint, second: Constraint) -> Constraint:
    """One of two."""
    source = several("start: @first | @second", first=first.source, second=second.source)
    return Constraint(source, second.field, first.schemas + second.schemas, first.parts + second.parts)


def several(start: str, **named: str) -> str:
    """A grammar that refers to others by their names, as `@name`. These may themselves be made of several."""
    grammars = [{"name": "all", "lark_grammar": start}]
    for name, source in named.items():
        own, *others = json.loads(source)["grammars"] if source.startswith(_SEVERAL) else [{"lark_grammar": source}]
        grammars += [{"name": name, "lark_grammar": own["lark_grammar"]}, *others]
    return _SEVERAL + json.dumps(grammars, ensure_ascii=False) + "}"


_SEVERAL = '{"grammars": '


def _check_length(text: str, field: str) -> None:
    if len(text) > MAX_SOURCE:
        raise GrammarError(f"it has {len(text)} characters, more than the {MAX_SOURCE} that are read", field)


def _text(value: Any, path: str) -> str:
    return characters(quoted(value), path)


def characters(text: str, path: str) -> str:
    """The text, if it is of characters. Raises GrammarError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError("it has half of a surrogate pair, which is no character", path) from None
    return text
