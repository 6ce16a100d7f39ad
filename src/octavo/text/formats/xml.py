"""Calls whose arguments are XML elements: Qwen3-Coder's and GLM's."""

from __future__ import annotations

import re

from octavo.grammar.lark import Lark
from octavo.text.formats.argument_grammar import arguments_of, written_value
from octavo.text.formats.arguments import ObjectWriter, to_json
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Marks, Reading, marks, marks_on_lines
from octavo.text.tools import Tool

_NAME = re.compile(r"[^<>\n]+")
_LINE_FEED = "\n"
_AFTER_CALL = marks("</tool_call>")


def _read_value(reader: Reader, writer: ObjectWriter, key: str, ends: Marks) -> Reading[bool]:
    """The value of an argument up to its end, which is read. Whether there is one."""
    types = writer.key(key)
    if types == {"string"}:
        writer.raw('"')
        end = yield from reader.until(ends, writer.characters, in_call=True)
        writer.raw('"' if end else "")
        return bool(end)
    pieces: list[str] = []
    if types and "string" not in types:
        yield from reader.value(pieces.append, strict=True)  # whose strings may have ends of values in them
    end = yield from reader.until(ends, pieces.append, in_call=True)
    text = "".join(pieces)
    writer.raw(to_json(text, types) if end or not types or "string" in types else text)
    return bool(end)


def _read_name(reader: Reader) -> Reading[str]:
    pieces: list[str] = []
    yield from reader.run(_NAME, pieces.append)
    return "".join(pieces).strip()


class Qwen3Coder(ToolFormat):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>, with line feeds between."""

    names = ("qwen3_coder", "qwen3_xml")
    markers = ("<tool_call>", "</tool_call>")
    families = ("qwen3_5",)
    _open = marks_on_lines("<tool_call>", "<function=")
    _function, _close_name, _line_feed = marks("<function="), marks(">"), marks("\n")
    _next = marks("<parameter=", "</function>", "</tool_call>")
    _ends = ("\n</parameter>\n", "</parameter>", "\n</function>")
    # A value that is not closed ends with the line before what comes next.
    _value_ends = marks("\n</parameter>", "</parameter>", "\n</function>")

    def recognises(self, template: str) -> bool:
        return "<function=" in template and "<parameter=" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(self._open, reader.text)):
            reader.hold(mark)
            if mark.endswith("<tool_call>"):
                yield from reader.blanks()
                if not (yield from reader.literal(self._function)):
                    reader.give_back()
                    continue
            name = yield from _read_name(reader)
            if not name or not (yield from reader.literal(self._close_name)):
                reader.give_back()
                continue
            reader.call(name)
            yield from self._read_arguments(reader, ObjectWriter(reader, reader.tools.get(name)))
            yield from reader.blanks()

    def _read_arguments(self, reader: Reader, writer: ObjectWriter) -> Reading[None]:
        while True:
            yield from reader.blanks()
            mark = yield from reader.literal(self._next, in_call=True)
            if mark != "<parameter=":
                break
            key = yield from _read_name(reader)
            yield from reader.literal(self._close_name, in_call=True)
            if not (yield from reader.peek()):
                return
            yield from reader.literal(self._line_feed)
            if not (yield from _read_value(reader, writer, key, self._value_ends)):
                return
        if not mark and not (yield from reader.peek()):
            return
        writer.close()
        if mark == "</function>":
            yield from reader.blanks()
            yield from reader.literal(_AFTER_CALL, in_call=True)

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        arguments = " ".join(
            f"({lark.literal(f'<parameter={argument.key}>' + _LINE_FEED)} "
            f"{written_value(lark, tool, argument, *self._ends)}){'' if argument.required else '?'}"
            for argument in arguments_of(tool)
        )
        opening = f"<tool_call>\n<function={tool.name}>\n"
        return CallGrammar(opening, f"{arguments} {lark.literal('</function>' + _LINE_FEED + '</tool_call>')}")

    def frame(self, lark: Lark) -> Frame:
        return Frame(separator="\n", trigger="<tool_call>")


class Glm45(ToolFormat):
    """<tool_call>name, then <arg_key>key</arg_key><arg_value>value</arg_value>, and </tool_call>, with line feeds
    between (GLM 4.5, 4.6) or without (4.7)."""

    names = ("glm45", "glm47")
    markers = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    families = ("glm",)
    _open = marks_on_lines("<tool_call>")
    _next = marks("<arg_key>", "</tool_call>")
    _value, _value_end, _key_end = marks("<arg_value>"), marks("</arg_value>"), marks("</arg_key>")

    def recognises(self, template: str) -> bool:
        return "<arg_key>" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(self._open, reader.text)):
            reader.hold(mark)
            yield from reader.blanks()
            name = yield from _read_name(reader)
            yield from reader.blanks()
            mark = yield from reader.literal(self._next)
            if not name or not mark:
                reader.give_back()
                continue
            reader.call(name)
            yield from self._read_arguments(reader, ObjectWriter(reader, reader.tools.get(name)), mark)
            yield from reader.blanks()

    def _read_arguments(self, reader: Reader, writer: ObjectWriter, mark: str) -> Reading[None]:
        while mark == "<arg_key>":
            key = yield from _read_name(reader)
            yield from reader.literal(self._key_end, in_call=True)
            yield from reader.blanks()
            if not (yield from reader.literal(self._value, in_call=True)):
                mark = ""
                break
            if not (yield from _read_value(reader, writer, key, self._value_end)):
                return
            yield from reader.blanks()
            mark = yield from reader.literal(self._next, in_call=True)
        if mark or (yield from reader.peek()):
            writer.close()

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        arguments = " ".join(
            f"({lark.literal(f'<arg_key>{argument.key}</arg_key>{_LINE_FEED}<arg_value>')} "
            f"{written_value(lark, tool, argument, '</arg_value>')} {lark.literal(_LINE_FEED)})"
            f"{'' if argument.required else '?'}"
            for argument in arguments_of(tool)
        )
        return CallGrammar(f"<tool_call>{tool.name}\n", f"{arguments} {lark.literal('</tool_call>')}")

    def frame(self, lark: Lark) -> Frame:
        return Frame(separator="\n", trigger="<tool_call>")
