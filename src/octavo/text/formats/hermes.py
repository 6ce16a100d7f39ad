"""<tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes, Qwen 2.5 and 3, Granite 4, SmolLM and many others."""

from __future__ import annotations

from typing import ClassVar

from octavo.grammar.lark import Lark
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.json_calls import json_call, read_calls
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading, marks, marks_on_lines
from octavo.text.tools import Tool


class Hermes(ToolFormat):
    """JSON objects between XML tags, each on a line of its own."""

    names: ClassVar[tuple[str, ...]] = ("hermes",)
    markers: ClassVar[tuple[str, ...]] = ("<tool_call>", "</tool_call>")
    families: ClassVar[tuple[str, ...]] = ("qwen", "hermes", "granitemoehybrid")
    _open = marks_on_lines("<tool_call>")
    _close = marks("</tool_call>")

    def recognises(self, template: str) -> bool:
        return "<tool_call>" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(self._open, reader.text)):
            reader.hold(mark)
            yield from reader.blanks()
            if not (yield from read_calls(reader, marked=True)):
                reader.give_back()
                continue
            yield from reader.blanks()
            yield from reader.literal(self._close, in_call=True)
            yield from reader.blanks()

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        return json_call(lark, tool, "<tool_call>\n", "\n</tool_call>")

    def frame(self, lark: Lark) -> Frame:
        return Frame(separator="\n", trigger="<tool_call>")


class Granite(Hermes):
    """A list of JSON objects after a special token (Granite 3), or after that token's name as text."""

    names = ("granite", "phi4_mini_json")
    markers = ("<|tool_call|>", "<|/tool_call|>", "<tool_call>")
    families = ("granite", "phi")
    _open = marks_on_lines("<|tool_call|>", "<tool_call>")
    _close = marks("<|/tool_call|>", "</tool_call>")

    def recognises(self, template: str) -> bool:
        return "<|tool_call|>" in template

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        return json_call(lark, tool)

    def frame(self, lark: Lark) -> Frame:
        tag = "<|tool_call|>"
        return Frame(f"{tag}[", ", ", "]", tag)
