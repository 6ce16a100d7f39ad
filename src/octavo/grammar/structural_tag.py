"""The grammar of a structural tag.

What comes after free text must be known by how it begins: there the text ends. So each format is written together with
what comes after it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from octavo.grammar import constraint, tag_formats
from octavo.grammar.constraint import MAX_SOURCE, Constraint
from octavo.grammar.errors import GrammarError
from octavo.grammar.lark import ANYTHING, Lark, either
from octavo.grammar.tag_formats import Format

MAX_OPTIONS = 10_000
"""Ways to go on, over all places."""

MAX_ENDS = 256
"""Texts that end free text, over all free texts: each is compared with each."""

MAX_END = 256
"""Characters of a text that ends free text."""

_ANCHORED = re.compile(r"(?<!\\)(\\\\)*\$$")


def structural_tag(value: Any, field: str, *, whitespace: str | None = constraint.WHITESPACE) -> Constraint:
    """Text that keeps to a structural tag.

    Args:
        value: as JSON.
        field: where it is in the request.
        whitespace: what may stand between JSON's tokens, unless a format says so itself; as of `json_schema`.

    Raises:
        GrammarError: it is none, too large, or asks for what cannot be kept to; with the path.
    """
    return _constraint(tag_formats.parse(value, field), _Context(field, whitespace), {})


def _constraint(
    parsed: tag_formats.Structures | tag_formats.StructuralTag, context: _Context, special: Mapping[str, int]
) -> Constraint:
    older, field = isinstance(parsed, tag_formats.Structures), context.field
    writer = _Writer(special, context, older=older)
    form: Format = parsed.format() if isinstance(parsed, tag_formats.Structures) else parsed.format
    path = field if older else f"{field}.format"
    start = writer.then(writer.follow(form, path, [END])) or '""'
    source = constraint.characters(constraint.several(writer.lark.source(start), **writer.grammars), field)
    spelled = None if special else partial(_constraint, parsed, context)
    return Constraint(source, field, tuple(writer.schemas), tuple(writer.parts), spelled)


@dataclass(frozen=True, slots=True)
class _Context:
    """What is the same however often a structural tag is written.

    Attributes:
        field, whitespace: see `structural_tag`.
        written: schemas by their paths as expressions, which are the same for every vocabulary; it is added to.
    """

    field: str
    whitespace: str | None
    written: dict[str, str] = dataclasses.field(default_factory=dict)


class Next(NamedTuple):
    """What may come next.

    Attributes:
        text: what it begins with; "" where that is not known.
        rest: a Lark expression of what follows that.
        ends: it is the end of the answer.
    """

    text: str = ""
    rest: str = ""
    ends: bool = False


END = Next(ends=True)
ELSEWHERE = Next()
"""Something that is not written here."""


class _Writer:
    """Writes the rules of one structural tag.

    Args:
        special: special tokens; see `Lark`.
        older: the formats come from the older way, whose members have other names.

    Attributes:
        schemas, parts: see `Constraint`. grammars: those that rules refer to by their names.
    """

    def __init__(self, special: Mapping[str, int], context: _Context, *, older: bool) -> None:
        self.lark = Lark(special)
        self.schemas: list[tuple[str, Any]] = []
        self.parts: list[tuple[str, str]] = []
        self.grammars: dict[str, str] = {}
        self._context = context
        self._older = older
        self._options = 0
        self._ends = 0

    def follow(self, form: Format, path: str, after: list[Next]) -> list[Next]:
        """A format and what comes after it."""
        match form:
            case tag_formats.ConstString(value):
                return self._opened(value, after)
            case tag_formats.JsonSchema():
                return [Next(rest=f"{self._json(form, path)} {self.then(after)}")]
            case tag_formats.Regex():
                return [Next(rest=self._regex(form, path, after))]
            case tag_formats.Grammar(source):
                return [Next(rest=f"{self._grammar(source, f'{path}.grammar')} {self.then(after)}")]
            case tag_formats.AnyText(excludes, most):
                if excludes and most is not None and most > tag_formats.MAX_CHARACTERS_WITHOUT:
                    bound = tag_formats.MAX_CHARACTERS_WITHOUT
                    raise GrammarError(f"it is more than {bound} beside 'excludes'", f"{path}.max_chars")
                pattern = ANYTHING if most is None else f"(?s:.{{0,{most}}})"
                return [Next(rest=self._text(path, {}, after, excludes, pattern=pattern))]
            case tag_formats.Sequence(elements):
                for place in reversed(range(len(elements))):
                    after = self.follow(elements[place], f"{path}.elements[{place}]", after)
                return after
            case tag_formats.Or(elements):
                each = [self.follow(element, f"{path}.elements[{n}]", after) for n, element in enumerate(elements)]
                return [option for options in each for option in options]
            case tag_formats.Tag(begin, content, end):
                rest = self.then(after)
                ends = [Next(text, rest) for text in ([end] if isinstance(end, str) else end)]
                return self._opened(begin, self.follow(content, f"{path}.content", ends if end else after))
            case tag_formats.TriggeredTags():
                return self._triggered(form, path, after)
            case tag_formats.TagsWithSeparator():
                return self._separated(form, path, after)
            case tag_formats.Dispatch():
                return [Next(rest=self._dispatch(form, path, after))]
        return self._repeated(form, path, after)

    def then(self, options: list[Next]) -> str:
        """One of these, as an expression."""
        self._options += len(options)
        if self._options > MAX_OPTIONS:
            raise GrammarError(f"there are more than {MAX_OPTIONS} ways to go on", self._context.field)
        found = dict.fromkeys(f"{self.lark.literal(each.text)} {each.rest}".strip() or '""' for each in options)
        return "" if [*found] == ['""'] else self._rule(either(found))

    def _rule(self, expression: str) -> str:
        self._check_size()
        return self.lark.rule(expression)

    def _up_to(self, end: str, pattern: str, excluded: list[str]) -> str:
        self._check_size()
        return self.lark.free_up_to(end, before=pattern, excluded=excluded)

    def _check_size(self) -> None:
        if self.lark.size > MAX_SOURCE:
            raise GrammarError(f"its grammar has more than {MAX_SOURCE} characters", self._context.field)

    def _opened(self, text: str, inner: list[Next]) -> list[Next]:
        return [Next(text, self.then(inner))] if text else inner

    def _json(self, form: tag_formats.JsonSchema, path: str) -> str:
        if form.any_order:
            raise GrammarError("members in any order are not supported", f"{path}.any_order")
        whitespace = self._context.whitespace
        if (most := form.max_whitespace_cnt) is not None:
            whitespace = f"[ \\t\\r\\n]{{0,{most}}}" if most else None
        where = f"{path.removesuffix('.content')}.schema" if self._older else f"{path}.json_schema"
        self.schemas.append((where, form.json_schema))
        written = self._context.written
        if where not in written:
            written[where] = constraint.embedded(form.json_schema, where, whitespace=whitespace)
        return self._rule(written[where])

    def _regex(self, form: tag_formats.Regex, path: str, after: list[Next]) -> str:
        """What is matched ends where the text that comes after it begins, as early as it can."""
        source = constraint.regex_between_slashes(form.pattern.removeprefix("^"), f"{path}.pattern")
        if _ANCHORED.search(source):
            source = source[:-1]
        if not source:
            return self.then(after) or '""'
        self.parts.append((f"{path}.pattern", f"start: /{source}/"))
        matched = self.lark.free(source)
        ways = [
            f"{self.lark.matched_up_to(matched, each.text) if each.text else matched} {each.rest}" for each in after
        ]
        return self._rule(either(ways))

    def _grammar(self, source: str, path: str) -> str:
        name = f"grammar_{len(self.grammars)}"
        self.grammars[name] = constraint.grammar(source, path).source
        self.parts.append((path, self.grammars[name]))
        return f"@{name}"

    def _text(
        self,
        path: str,
        called: Mapping[str, list[str]],
        after: list[Next],
        excludes: list[str],
        *,
        pattern: str = ANYTHING,
        loop: bool = True,
    ) -> str:
        """Text up to what comes after it.

        Args:
            called: what follows, as expressions, where one of these texts is written in it; once or, if `loop`, every
                time, with more text behind.
            excludes: texts that are not in it.
            pattern: a regular expression of it, if nothing is called.
        """
        self._check_ends({*called, *(each.text for each in after if each.text)}, path)
        calls = [
            f"{self._up_to(text, pattern, excludes)} {self._rule(either(rests))}" for text, rests in called.items()
        ]
        last: list[str] = []
        for each in after:
            if each.ends:
                last.append(self.lark.free(pattern, excludes))
            elif each.text:
                last.append(f"{self._up_to(each.text, pattern, excludes)} {each.rest}")
            else:
                message = "nothing tells where its text ends: a const_string or a tag must follow, or nothing at all"
                raise GrammarError(message, path)
        if loop and calls:
            return self._rule(f"{self._rule(either(calls))}* {either(last)}")
        return self._rule(either(calls + last))

    def _check_ends(self, texts: set[str], path: str) -> None:
        self._ends += len(texts)
        if self._ends > MAX_ENDS:
            raise GrammarError(f"there are more than {MAX_ENDS} texts that end free text", path)
        for text in texts:
            if len(text) > MAX_END:
                raise GrammarError(f"a text that ends free text has more than {MAX_END} characters", path)
        for text in texts:
            for other in texts:
                if text in other and text != other:
                    message = f"{text!r} is in {other!r}, which could thus never be written: either ends the free text"
                    raise GrammarError(message, path)

    def _triggered(self, form: tag_formats.TriggeredTags, path: str, after: list[Next]) -> list[Next]:
        loop = not form.stop_after_first
        tags = "structures" if self._older else "tags"
        if len(form.triggers) > MAX_ENDS:
            raise GrammarError(f"there are {len(form.triggers)}, more than {MAX_ENDS}", f"{path}.triggers")
        opened: list[Next] = []
        called: dict[str, list[str]] = {trigger: [] for trigger in form.triggers}
        for place, tag in enumerate(form.tags):
            where = f"{path}.{tags}[{place}]"
            trigger = self._trigger(form.triggers, tag.begin, f"{where}.begin")
            [option] = self.follow(tag, where, [ELSEWHERE] if loop else after)
            opened.append(option)
            rest = f"{self.lark.literal(tag.begin[len(trigger) :])} {option.rest}"
            called[trigger].append(rest.strip() or '""')
        for place, rests in enumerate(called.values()):
            if not rests:
                raise GrammarError("no tag begins with it", f"{path}.triggers[{place}]")
        if form.at_least_one and not loop:
            return opened
        text = self._text(path, called, after, form.excludes, loop=loop)
        return [Next(each.text, f"{each.rest} {text}") for each in opened] if form.at_least_one else [Next(rest=text)]

    def _trigger(self, triggers: list[str], begin: str, path: str) -> str:
        found = [trigger for trigger in triggers if begin.startswith(trigger)]
        if len(found) != 1:
            raise GrammarError(f"it must begin with one of the triggers, not with {len(found)}", path)
        if token := self.lark.within_special(begin, len(found[0])):
            raise GrammarError(f"the trigger {found[0]!r} ends within {token!r}, which is one token", path)
        return found[0]

    def _separated(self, form: tag_formats.TagsWithSeparator, path: str, after: list[Next]) -> list[Next]:
        behind = after if form.stop_after_first else [ELSEWHERE]
        each = [self.follow(tag, f"{path}.tags[{place}]", behind) for place, tag in enumerate(form.tags)]
        options = [option for some in each for option in some]
        if not form.stop_after_first:
            more = self._rule(f"({self.lark.literal(form.separator)} {self.then(options)})* {self.then(after)}")
            options = [Next(option.text, f"{option.rest} {more}") for option in options]
        return options if form.at_least_one else options + after

    def _dispatch(self, form: tag_formats.Dispatch, path: str, after: list[Next]) -> str:
        behind = [ELSEWHERE] if form.loop else after
        called: dict[str, list[str]] = {}
        for place, (text, content) in enumerate(form.rules):
            rest = self.then(self.follow(content, f"{path}.rules[{place}][1]", behind))
            called.setdefault(text, []).append(rest or '""')
        return self._text(path, called, after, form.excludes, loop=form.loop)

    def _repeated(self, form: Format, path: str, after: list[Next]) -> list[Next]:
        path = f"{path}.content"
        if isinstance(form, tag_formats.Optional):
            return self.follow(form.content, path, after) + after
        assert isinstance(form, tag_formats.Plus | tag_formats.Star | tag_formats.Repeat)
        options = self.follow(form.content, path, [ELSEWHERE])
        one, behind = self.then(options) or '""', self.then(after)
        if isinstance(form, tag_formats.Repeat):
            if form.max != -1 and form.max < form.min:
                raise GrammarError("it is less than 'min'", f"{path.removesuffix('.content')}.max")
            if form.max == 0:
                return after
            return [Next(rest=f"{one}{{{form.min},{'' if form.max == -1 else form.max}}} {behind}")]
        more = self._rule(f"{one}* {behind}")
        if isinstance(form, tag_formats.Plus):
            return [Next(option.text, f"{option.rest} {more}") for option in options]
        return [Next(option.text, f"{option.rest} {more}") for option in options] + after
