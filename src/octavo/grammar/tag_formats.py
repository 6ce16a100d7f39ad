"""Structural tags as clients write them: xgrammar's formats, of which an answer is put together, and the older way.

https://xgrammar.mlc.ai/docs/structural_tag/structural_tag
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.grammar.errors import MAX_CAUSE, GrammarError
from octavo.grammar.schema import check_size

MAX_REPEATS = 1_000
MAX_CHARACTERS = 10_000
"""Of text whose length is bounded: a lexer counts them in states."""
MAX_CHARACTERS_WITHOUT = 1_000
"""Of such text that some texts must not be in: it has a multiple of the states."""

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=MAX_REPEATS)]
Schema = bool | dict[str, Any]


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A member that is not known would be a constraint that is ignored."""


class ConstString(_Format, frozen=True, tag="const_string"):
    """This text."""

    value: str


class JsonSchema(_Format, frozen=True, tag="json_schema"):
    """JSON that is valid for a schema.

    Attributes:
        max_whitespace_cnt: characters between two of JSON's tokens; None for what is usual.
    """

    json_schema: Schema
    style: Literal["json"] = "json"
    any_order: bool = False
    max_whitespace_cnt: Count | None = None


class Regex(_Format, frozen=True, tag="regex"):
    """Text that a regular expression matches as a whole."""

    pattern: Text


class Grammar(_Format, frozen=True, tag="grammar"):
    """What a grammar in Lark's syntax or in GBNF says."""

    grammar: Text


class AnyText(_Format, frozen=True, tag="any_text"):
    """Any text without `excludes`, up to what comes after it."""

    excludes: list[Text] = []
    max_chars: Annotated[int, Meta(ge=0, le=MAX_CHARACTERS)] | None = None
    max_tokens: None = None


class Sequence(_Format, frozen=True, tag="sequence"):
    """One after the other."""

    elements: Annotated[list[Format], Meta(min_length=1)]


class Or(_Format, frozen=True, tag="or"):
    """One of several."""

    elements: Annotated[list[Format], Meta(min_length=1)]


class Optional(_Format, frozen=True, tag="optional"):
    """What may be left out."""

    content: Format


class Plus(_Format, frozen=True, tag="plus"):
    """Once or several times."""

    content: Format


class Star(_Format, frozen=True, tag="star"):
    """Any number of times."""

    content: Format


class Repeat(_Format, frozen=True, tag="repeat"):
    """From `min` to `max` times, without end if that is -1."""

    min: Count
    max: Annotated[int, Meta(ge=-1, le=MAX_REPEATS)]
    content: Format


class Tag(_Format, frozen=True, tag="tag"):
    """What stands between two texts; `end` may be one of several."""

    begin: str
    content: Format
    end: str | Annotated[list[Text], Meta(min_length=1)]


class TriggeredTags(_Format, frozen=True, tag="triggered_tags"):
    """Text in which tags are from where one of their triggers is written.

    Attributes:
        at_least_one: it begins with a tag.
        stop_after_first: it ends with the first tag.
        excludes: texts that are not in what is between tags.
    """

    triggers: Annotated[list[Text], Meta(min_length=1)]
    tags: Annotated[list[Tag], Meta(min_length=1)]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[Text] = []


class TagsWithSeparator(_Format, frozen=True, tag="tags_with_separator"):
    """Tags and what separates them."""

    tags: Annotated[list[Tag], Meta(min_length=1)]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


class Dispatch(_Format, frozen=True, tag="dispatch"):
    """Text in which a format follows where its pattern, a text, is written; only once unless `loop`."""

    rules: Annotated[list[tuple[Text, Format]], Meta(min_length=1)]
    loop: bool = True
    excludes: list[Text] = []


Format = (
    ConstString
    | JsonSchema
    | Regex
    | Grammar
    | AnyText
    | Sequence
    | Or
    | Optional
    | Plus
    | Star
    | Repeat
    | Tag
    | TriggeredTags
    | TagsWithSeparator
    | Dispatch
)

FORMATS = tuple(sorted(str(kind.__struct_config__.tag) for kind in Format.__args__))
"""Their types' names."""


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends."""

    format: Format
    type: Literal["structural_tag"] = "structural_tag"


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tag in the older way."""

    begin: Text
    schema: Schema
    end: str


class Structures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The older way: schemas between tags, in text."""

    structures: Annotated[list[Structure], Meta(min_length=1)]
    triggers: Annotated[list[Text], Meta(min_length=1)]
    type: Literal["structural_tag"] = "structural_tag"

    def format(self) -> TriggeredTags:
        """The same in the newer way."""
        tags = [Tag(each.begin, JsonSchema(each.schema), each.end) for each in self.structures]
        return TriggeredTags(self.triggers, tags)


_PLACE = re.compile(r" - at `\$(.*)`$")


def parse(value: Any, path: str) -> Structures | StructuralTag:
    """What a client has sent. Raises GrammarError with the path of what is wrong with it."""
    check_size(value, path, "the structural tag")
    older = isinstance(value, dict) and "format" not in value and ("structures" in value or "triggers" in value)
    try:
        return msgspec.convert(value, Structures) if older else msgspec.convert(value, StructuralTag)
    except msgspec.ValidationError as error:
        message = str(error)
        place = _PLACE.search(message)
        where = place[1] if place else ""
        said = (message[: place.start()] if place else message)[:MAX_CAUSE]
        if said.startswith("Invalid value") and where.endswith(".type"):
            said += f": the types that are supported are {', '.join(FORMATS)}"
        raise GrammarError(said, path + where) from None
