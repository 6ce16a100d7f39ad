"""Reasoning: what a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import OctavoError
from octavo.grammar.lark import TEXT, Lark, escaped
from octavo.text.formats.reader import Reader
from octavo.text.parser import Parser
from octavo.text.parts import Part
from octavo.text.scanner import Reading, drop, marks, marks_on_lines

_NEWLINES = re.compile(r"\n+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a family marks what it thinks. Line feeds next to the markers belong to them.

    Attributes:
        name: as `--reasoning-parser` takes it, which is vLLM's.
        open, close: the markers.
        also_open, also_close: other ways to write them.
        interrupts: marks of the answer that end the thinking as well.
        always: whether the model thinks unless its prompt says that it has done so.
    """

    name: str
    open: str = "<think>"
    close: str = "</think>"
    also_open: tuple[str, ...] = ()
    also_close: tuple[str, ...] = ()
    interrupts: tuple[str, ...] = ()
    always: bool = False

    @property
    def opens(self) -> tuple[str, ...]:
        """All that begins reasoning."""
        return (self.open, *self.also_open)

    @property
    def closes(self) -> tuple[str, ...]:
        """All that ends it, but for `interrupts`."""
        return (self.close, *self.also_close)

    @property
    def markers(self) -> tuple[str, ...]:
        """All that frames reasoning. Where one is a special token, a parser must see its text all the same."""
        return (*self.opens, *self.closes)

    def is_open(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins with reasoning without saying so."""
        end = prompt.rstrip()
        return not end.endswith(self.close) if self.always else end.endswith(self.open)

    def pattern(self, lark: Lark) -> str:
        """A regular expression of text that begins with reasoning; "" where a token that is no text begins it."""
        opens = [mark for mark in self.opens if not lark.begins_special(mark)]
        return f"({'|'.join(map(escaped, opens))})(?s:.*)" if opens else ""

    def grammar(self, lark: Lark, *, opened: bool) -> str:
        """A Lark expression of reasoning, its markers included."""
        closes = self.closes
        if lark.begins_special(self.close):
            return f"{'' if opened else lark.literal(self.open)} {TEXT} {lark.literal(self.close)}"
        if opened:
            return lark.up_to(*closes)
        if lark.begins_special(self.open):
            return f"{lark.literal(self.open)} {lark.up_to(*closes)}"
        return lark.up_to(*closes, before=self.pattern(lark))

    def parser(self, answer: Parser, *, opened: bool) -> ReasoningParser:
        """What reads one choice: reasoning first, and then what `answer` reads. `opened`: as `is_open` says."""
        return ReasoningParser(self, answer, opened)


class ReasoningParser:
    """A `Parser` that splits off the reasoning at the beginning and leaves the rest to another."""

    def __init__(self, form: ReasoningFormat, answer: Parser, opened: bool) -> None:
        self.thinking = opened
        self._answer = answer
        self._reader = Reader()
        self._reading: Reading[None] | None = self._read(form, opened)

    @property
    def in_call(self) -> bool:
        """Whether the answer's last call is not whole."""
        return self._answer.in_call

    def push(self, text: str) -> list[Part]:
        """The parts that this piece of text completes."""
        if self._reading is None:
            return self._answer.push(text)
        self._reader.push(text)
        return self._step(self._reading)

    def flush(self) -> list[Part]:
        """What was held back."""
        if self._reading is None:
            return self._answer.flush()
        self._reader.end()
        return self._step(self._reading) + self._answer.flush()

    def _step(self, reading: Reading[None]) -> list[Part]:
        try:
            next(reading)
        except StopIteration:
            self._reading = None
            parts = self._reader.parts()
            return parts + self._answer.push(self._reader.let_go() + self._reader.rest())
        return self._reader.parts()

    def _read(self, form: ReasoningFormat, opened: bool) -> Reading[None]:
        reader = self._reader
        opens, closes = form.opens, form.closes
        if opened:
            yield from reader.run(_NEWLINES, drop)
            yield from reader.literal(marks(*opens))
        else:
            reader.hold()
            yield from reader.blanks()
            mark = yield from reader.literal(marks(*opens, *closes))
            if not mark:
                return
            reader.let_go()
            self.thinking = mark in opens
        yield from reader.run(_NEWLINES, drop)
        if self.thinking:
            mark = yield from reader.until(marks_on_lines(*closes, *form.interrupts), reader.reasoning)
            self.thinking = False
            if mark.lstrip("\n") in form.interrupts:
                reader.hold(mark)
                return
            yield from reader.run(_NEWLINES, drop)


_GRANITE_OPEN = ("Here is my thought process:", "Here's my thought process:")
_GRANITE_CLOSE = ("Here is my response:", "Here's my response:")

# The last one whose markers a chat template shows is the one that is found.
REASONING_FORMATS: Sequence[ReasoningFormat] = (
    ReasoningFormat(name="deepseek_r1", always=True),
    ReasoningFormat(name="deepseek_v3"),
    ReasoningFormat(name="qwen3"),
    ReasoningFormat(name="glm45"),
    ReasoningFormat(name="think"),
    ReasoningFormat(name="kimi_k2", interrupts=("<|tool_calls_section_begin|>",)),
    ReasoningFormat(name="mistral", open="[THINK]", close="[/THINK]"),
    ReasoningFormat(
        name="granite",
        open=_GRANITE_OPEN[0],
        close=_GRANITE_CLOSE[0],
        also_open=_GRANITE_OPEN[1:],
        also_close=_GRANITE_CLOSE[1:],
    ),
)


def reasoning_format(name: str) -> ReasoningFormat:
    """The format with this name. Raises OctavoError if there is none."""
    for form in REASONING_FORMATS:
        if form.name == name:
            return form
    raise OctavoError(f"There is no reasoning parser {name!r}: take one of {', '.join(reasoning_format_names())}.")


def reasoning_format_names() -> tuple[str, ...]:
    """All names that `reasoning_format` takes."""
    return tuple(sorted(form.name for form in REASONING_FORMATS))


def find_reasoning_format(template: str | None) -> ReasoningFormat | None:
    """The format of which a chat template (its source) shows the markers; None if it shows none."""
    for form in reversed(REASONING_FORMATS):
        if template and all(mark in template for mark in (form.close, *form.interrupts)) and not form.always:
            return form
    return None
