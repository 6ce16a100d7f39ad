"""Calls between special tokens, in a section of the answer: DeepSeek's and Kimi's."""

from __future__ import annotations

import re
from typing import ClassVar

from octavo.grammar.lark import Lark
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading, marks, marks_on_lines
from octavo.text.tools import Tool

_NAME = re.compile(r"[\w.:/-]+")


class Sections(ToolFormat):
    """A name and JSON arguments, each call within markers and all of them within two more.

    Arguments are all that comes before the next marker, but for those within their JSON's strings and for white space
    around. Markers of the section that have no calls within are left out.
    """

    section: ClassVar[tuple[str, str]]
    call_marks: ClassVar[tuple[str, str]]
    separator: ClassVar[str]
    fence: ClassVar[tuple[str, str]] = ("", "")

    def read(self, reader: Reader) -> Reading[None]:
        begin, end = self.call_marks
        opening = marks_on_lines(*self.section, begin)
        # A call that is not closed ends where anything else begins.
        after = [blanks + mark for mark in (end, begin, *self.section) for blanks in ("\n", " ", "")]
        ends = marks(*after, *([self.fence[1] + end] if self.fence[1] else []))
        closing = marks(*(mark for mark in (*after, self.fence[1] + end) if mark.endswith(end)))
        mark = yield from reader.until(opening, reader.text)
        while mark:
            if mark.endswith(begin):
                reader.hold(mark)
                name = yield from self._read_name(reader)
                if not name:
                    reader.give_back()
                    mark = yield from reader.until(opening, reader.text)
                    continue
                reader.call(name)
                yield from reader.blanks()
                yield from reader.value(reader.arguments)
                yield from reader.up_to(ends, reader.arguments, in_call=True)
                yield from reader.literal(closing)
            yield from reader.blanks()
            mark = yield from reader.literal(opening, in_call=True)
            mark = mark or (yield from reader.until(opening, reader.text))

    def _read_name(self, reader: Reader) -> Reading[str]:
        """The name of a call, and what comes between it and the arguments; "" if it is no call."""
        header: list[str] = []
        yield from reader.blanks()
        yield from reader.run(_NAME, header.append)
        yield from reader.blanks()
        return self._name("".join(header)) if (yield from reader.literal(marks(self.separator))) else ""

    def _name(self, header: str) -> str:
        return header

    def _header(self, name: str) -> str:
        """What comes between a call's marker and its arguments."""
        return f"{name}{self.separator}"

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        begin, end = self.call_marks
        return CallGrammar(
            begin + self._header(tool.name), f"{lark.json(tool.schema)} {lark.literal(self.fence[1] + end)}"
        )

    def frame(self, lark: Lark) -> Frame:
        begin, end = self.section
        return Frame(begin, "\n" if self.fence[1] else "", end, begin)


class DeepSeekV31(Sections):
    """DeepSeek V3.1 and later."""

    names = ("deepseek_v31",)
    families = ("deepseek",)
    section = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    call_marks = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
    separator = "<｜tool▁sep｜>"
    markers = (*section, *call_marks, separator)

    def recognises(self, template: str) -> bool:
        return self.section[0] in template and "```json" not in template


class DeepSeekV3(Sections):
    """DeepSeek V3 and R1: the kind of call comes before the separator, and arguments are fenced as code."""

    names = ("deepseek_v3",)
    section, call_marks, separator = DeepSeekV31.section, DeepSeekV31.call_marks, DeepSeekV31.separator
    markers = DeepSeekV31.markers
    fence = ("```json\n", "\n```")
    _fence, _line_feed = marks("```json"), marks("\n")

    def recognises(self, template: str) -> bool:
        return self.section[0] in template and "```json" in template

    def _read_name(self, reader: Reader) -> Reading[str]:
        if not (yield from super()._read_name(reader)):
            return ""
        name: list[str] = []
        yield from reader.blanks()
        yield from reader.run(_NAME, name.append)
        if not (yield from reader.literal(self._line_feed)):
            return ""
        yield from reader.blanks()
        yield from reader.literal(self._fence, in_call=True)
        return "".join(name)

    def _header(self, name: str) -> str:
        return f"function{self.separator}{name}\n{self.fence[0]}"


class KimiK2(Sections):
    """Kimi K2: calls have ids, functions.NAME:INDEX."""

    names = ("kimi_k2",)
    families = ("kimi",)
    section = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    call_marks = ("<|tool_call_begin|>", "<|tool_call_end|>")
    separator = "<|tool_call_argument_begin|>"
    markers = (*section, *call_marks, separator)

    def call_id(self, index: int, name: str) -> str:
        return f"functions.{name}:{index}"

    _id = re.compile(r"(?:functions\.)?(.+?)(?::\d*)?")

    def recognises(self, template: str) -> bool:
        return self.call_marks[0] in template

    def _name(self, header: str) -> str:
        match = self._id.fullmatch(header)
        return match[1] if match else header

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        begin, end = self.call_marks
        index_and_rest = f"/[0-9]/ {lark.literal(self.separator)} {lark.json(tool.schema)} {lark.literal(end)}"
        return CallGrammar(f"{begin}functions.{tool.name}:", index_and_rest)
