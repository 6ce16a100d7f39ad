"""Calls between special tokens, in a section of the answer: DeepSeek's and Kimi's."""

from __future__ import annotations

import re
from typing import ClassVar

from octavo.text.formats.format import ToolFormat
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading, marks

_NAME = re.compile(r"[\w.:/-]+")


class Sections(ToolFormat):
    """A name and JSON arguments, each call within markers and all of them within two more.

    What is between the markers of a call's arguments is taken as it is, but for white space. Markers of the section
    that have no calls within are left out.
    """

    section: ClassVar[tuple[str, str]]
    call_marks: ClassVar[tuple[str, str]]
    separator: ClassVar[str]
    fence: ClassVar[tuple[str, str]] = ("", "")

    def read(self, reader: Reader) -> Reading[None]:
        begin, end = self.call_marks
        opening = marks(*("\n" * count + mark for mark in (*self.section, begin) for count in range(3)))
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


class KimiK2(Sections):
    """Kimi K2: calls have ids, functions.NAME:INDEX."""

    names = ("kimi_k2",)
    families = ("kimi",)
    section = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    call_marks = ("<|tool_call_begin|>", "<|tool_call_end|>")
    separator = "<|tool_call_argument_begin|>"
    markers = (*section, *call_marks, separator)
    _id = re.compile(r"(?:functions\.)?(.+?)(?::\d*)?")

    def recognises(self, template: str) -> bool:
        return self.call_marks[0] in template

    def _name(self, header: str) -> str:
        match = self._id.fullmatch(header)
        return match[1] if match else header
