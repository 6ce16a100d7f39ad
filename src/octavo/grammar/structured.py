"""What an answer must look like, in the words of vLLM's `structured_outputs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequest
from octavo.grammar import constraint
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError

FIELD = "structured_outputs"

KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")

JSON_KINDS = ("json", "json_object", "structural_tag")

WHITESPACE = ("whitespace_pattern", "disable_any_whitespace")
"""What may be said of the blanks in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What an answer must look like: exactly one of `json`, `json_object`, `regex`, `choice`, `grammar` and
    `structural_tag`.

    Attributes:
        json: a JSON schema, or one as a string; the answer is valid for it.
        json_object: any JSON object.
        regex: matches the answer as a whole. Rust's syntax, without lookaround and references.
        choice: the answer is one of these texts.
        grammar: in Lark's syntax, or in GBNF (EBNF with `root ::=`).
        structural_tag: xgrammar's, or one as a string.
        disable_any_whitespace: JSON without blanks between its tokens.
        whitespace_pattern: a regular expression for what may stand between JSON's tokens; None is a blank, or a new
            line with its indentation.

    Raises:
        InvalidRequest: none or several of them, a value of another type, or whitespace where there is no JSON.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        self._check("json", str | dict | None, "a JSON schema, or one as a string")
        self._check("structural_tag", str | dict | None, "a structural tag, or one as a string")
        self._check("json_object", bool | None, "True or False")
        self._check("disable_any_whitespace", bool, "True or False")
        for name in ("regex", "grammar", "whitespace_pattern"):
            self._check(name, str | None, "a string")
        if self.choice is not None:
            several = () if isinstance(self.choice, str) or not isinstance(self.choice, Sequence) else self.choice
            if not several or not all(isinstance(each, str) for each in several):
                raise self._wrong("choice", "a list of at least one string")
            object.__setattr__(self, "choice", tuple(several))
        if len(self._given()) != 1:
            raise InvalidRequest(f"'{FIELD}' must have exactly one of {', '.join(KINDS)}", FIELD)
        self._check_whitespace()

    def _check_whitespace(self) -> None:
        [kind], about = self._given(), [name for name in WHITESPACE if getattr(self, name)]
        if about and kind not in JSON_KINDS:
            message = (
                f"{FIELD}.{about[0]} is about JSON's tokens: it goes with {', '.join(JSON_KINDS)}, not with {kind}"
            )
            raise InvalidRequest(message, f"{FIELD}.{about[0]}")
        if len(about) > 1:
            raise InvalidRequest(f"{FIELD}.{about[0]} and {about[1]} exclude each other", f"{FIELD}.{about[0]}")

    def constraint(self) -> Constraint:
        """The same as a grammar. Raises GrammarError: it cannot be kept to."""
        [kind] = self._given()
        value, field = getattr(self, kind), f"{FIELD}.{kind}"
        whitespace = None if self.disable_any_whitespace else self.whitespace_pattern or constraint.WHITESPACE
        match kind:
            case "json":
                return constraint.json_schema(_parsed(value, field), field, whitespace=whitespace)
            case "json_object":
                return constraint.json_schema({"type": "object"}, field, whitespace=whitespace)
            case "regex":
                return constraint.regex(value, field)
            case "choice":
                return constraint.choice(value, field)
            case "structural_tag":
                from octavo.grammar.structural_tag import structural_tag

                return structural_tag(_parsed(value, field), field, whitespace=whitespace)
        return constraint.grammar(value, field)

    def _given(self) -> list[str]:
        return [kind for kind in KINDS if getattr(self, kind) not in (None, False)]

    def _check(self, name: str, kind: Any, right: str) -> None:
        if not isinstance(getattr(self, name), kind):
            raise self._wrong(name, right)

    def _wrong(self, name: str, right: str) -> InvalidRequest:
        return InvalidRequest(f"{FIELD}.{name} is {getattr(self, name)!r:.80}, but must be {right}", f"{FIELD}.{name}")


def _parsed(value: str | dict[str, Any], field: str) -> Any:
    import orjson

    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise GrammarError(f"it is no JSON: {error}", field) from error
