"""[TOOL_CALLS] and what Mistral's models write after it."""

from __future__ import annotations

import re
import uuid

from octavo.grammar.lark import Lark
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.json_calls import json_call, read_calls
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading, drop, marks, marks_on_lines
from octavo.text.tools import Tool

_NAME = re.compile(r"[\w.-]+")
_ID = re.compile(r"\w+")


class Mistral(ToolFormat):
    """[TOOL_CALLS][{"name": …, "arguments": …}] of older tokenizers, or for each call [TOOL_CALLS]name[ARGS]{…} (also
    with [CALL_ID] and an id before the arguments, and without [ARGS]) of those from v11 on."""

    names = ("mistral",)
    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    families = ("mistral", "mixtral", "ministral", "devstral")
    _open = marks_on_lines("[TOOL_CALLS]")
    _call_id, _arguments = marks("[CALL_ID]"), marks("[ARGS]")

    def call_id(self, index: int, name: str) -> str:
        return uuid.uuid4().hex[:9]  # its templates refuse others

    def recognises(self, template: str) -> bool:
        return "[TOOL_CALLS]" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(self._open, reader.text)):
            reader.hold(mark)
            yield from reader.blanks()
            if (yield from reader.peek()) in ("[", "{"):
                is_call = yield from read_calls(reader, marked=True)
            else:
                is_call = yield from self._read_call(reader)
            if is_call:
                yield from reader.blanks()
            else:
                reader.give_back()

    def _read_call(self, reader: Reader) -> Reading[bool]:
        name: list[str] = []
        yield from reader.run(_NAME, name.append)
        if (yield from reader.literal(self._call_id)):
            yield from reader.run(_ID, drop)
        marked = yield from reader.literal(self._arguments)
        yield from reader.blanks()
        if not name or not (marked or (yield from reader.peek()) == "{"):
            return False
        reader.call("".join(name))
        yield from reader.value(reader.arguments)
        return True

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        if lark.begins_special("[ARGS]"):
            return CallGrammar(f"[TOOL_CALLS]{tool.name}[ARGS]", lark.json(tool.schema))
        return json_call(lark, tool)

    def frame(self, lark: Lark) -> Frame:
        tag = "[TOOL_CALLS]"
        return Frame(trigger=tag) if lark.begins_special("[ARGS]") else Frame(f"{tag}[", ", ", "]", tag)
