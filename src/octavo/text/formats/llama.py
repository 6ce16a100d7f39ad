"""Llama 3's JSON, and the Python of Llama 3.2 and 4."""

from __future__ import annotations

from octavo.grammar.lark import Lark
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.json_calls import json_call, read_bare_calls
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading
from octavo.text.tools import Tool


class Llama3Json(ToolFormat):
    """{"name": …, "parameters": {…}}, which may have <|python_tag|> before it; several are separated by semicolons."""

    names = ("llama3_json", "llama4_json")
    markers = ("<|python_tag|>",)
    families = ("llama",)

    def recognises(self, template: str) -> bool:
        return '"parameters": ' in template and "ipython" in template

    def read(self, reader: Reader) -> Reading[None]:
        return read_bare_calls(reader, "<|python_tag|>")

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        return json_call(lark, tool, key="parameters")

    def frame(self, lark: Lark) -> Frame:
        return Frame(separator="; ")
