"""<tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes, Qwen 2.5 and 3, Granite 4, SmolLM and many others."""

from __future__ import annotations

from octavo.text.formats.format import ToolFormat
from octavo.text.formats.json_calls import read_calls
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Marks, Reading

_OPEN = Marks("<tool_call>", "\n<tool_call>", "\n\n<tool_call>")
_CLOSE = Marks("</tool_call>")


class Hermes(ToolFormat):
    """JSON objects between XML tags, each on a line of its own."""

    names = ("hermes",)
    markers = ("<tool_call>", "</tool_call>")
    families = ("qwen", "hermes", "granite4", "granitemoehybrid")

    def recognises(self, template: str) -> bool:
        return "<tool_call>" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(_OPEN, reader.text)):
            reader.hold(mark)
            yield from reader.blanks()
            if not (yield from read_calls(reader, marked=True)):
                reader.give_back()
                continue
            yield from reader.blanks()
            yield from reader.literal(_CLOSE)
            yield from reader.blanks()
