"""Calls as a list of Python calls, [f(a=1, b="x"), g()]: Llama 3.2 and 4, and others."""

from __future__ import annotations

import json
import math
import re

from octavo.grammar.lark import Lark
from octavo.text.formats.argument_grammar import arguments_of
from octavo.text.formats.arguments import ObjectWriter, Types, to_json
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Give, Reading, drop, marks
from octavo.text.tools import Tool

_NAME = re.compile(r"[\w.-]+")
_BLANK = re.compile(r"\s+")
_BLANKS_AND_COMMAS = re.compile(r"[\s,]+")
_WORD = re.compile(r"[^\s,:()\[\]{}\"'=]+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_IN_QUOTES = {quotes: re.compile(rf"[^\\{quotes[0]}]+") for quotes in ('"', "'", '"""', "'''")}
_TRIPLE_QUOTES = marks('"""', "'''")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""}
_ESCAPES |= {character: character for character in "\\/'\""}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


class Pythonic(ToolFormat):
    """Python's literals become JSON. Tags around the list, as Llama 4 may write them, are left out."""

    names = ("pythonic", "llama4_pythonic")
    markers = ("<|python_start|>", "<|python_end|>")
    families = ("llama4",)
    _open = marks("[", "<|python_start|>")
    _list, _parenthesis, _equals = marks("["), marks("("), marks("=")
    _close, _close_list, _end = marks(")"), marks("]"), marks("<|python_end|>")

    def recognises(self, template: str) -> bool:
        return "func_name1(" in template

    def read(self, reader: Reader) -> Reading[None]:
        while mark := (yield from reader.until(self._open, reader.text)):
            reader.hold(mark)
            if mark != "[":
                yield from reader.blanks()
                if not (yield from reader.literal(self._list)):
                    reader.give_back()
                    continue
            if not (yield from self._read_call(reader)):
                reader.give_back()
                continue
            while True:
                reader.hold()
                yield from reader.run(_BLANKS_AND_COMMAS, drop)
                if (yield from reader.literal(self._close_list)):
                    reader.let_go()
                    break
                if not (yield from self._read_call(reader)):
                    yield from reader.give_back_unless_cut()
                    break
            yield from reader.blanks()
            yield from reader.literal(self._end, in_call=True)
            yield from reader.blanks()

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        arguments = [
            (lark.rule(f"{lark.literal(argument.key + '=')} {lark.json(argument.schema)}"), argument.required)
            for argument in arguments_of(tool)
        ]
        # From the last to the first: what may follow an argument, and what may be all from it on.
        follow, whole = "", ""
        for rule, required in reversed(arguments):
            this = f"{rule} {follow}"
            whole = lark.rule(this if required else f"{this} | {whole}" if whole else f"({this})?")
            follow = lark.rule(f'", " {rule} {follow}' if required else f'(", " {rule})? {follow}')
        return CallGrammar(f"{tool.name}(", f"{whole} {lark.literal(')')}")

    def frame(self, lark: Lark) -> Frame:
        return Frame("[", ", ", "]")

    def _read_call(self, reader: Reader) -> Reading[bool]:
        """One call. Whether it is one: of a known tool, or at the beginning of an answer of one with arguments."""
        pieces: list[str] = []
        yield from reader.run(_NAME, pieces.append)
        name = "".join(pieces)
        if not name or not (yield from reader.literal(self._parenthesis)):
            return False
        begun = name in reader.tools
        if begun:
            reader.call(name)
        elif not reader.is_silent:
            return False
        writer = ObjectWriter(reader, reader.tools.get(name))
        complete = True
        while complete:
            yield from reader.run(_BLANKS_AND_COMMAS, drop)
            if begun:
                reader.hold()
            closed = yield from reader.literal(self._close)
            key: list[str] = []
            if not closed:
                yield from reader.run(_WORD, key.append)
                yield from reader.blanks()
                if not key or not (yield from reader.literal(self._equals)):
                    break
            if begun:
                reader.let_go()
            else:
                begun = True
                reader.call(name)
            if closed:
                writer.close()
                return True
            yield from reader.blanks()
            complete = yield from _read_argument(reader, writer, "".join(key))
        if begun:
            # What is written wrongly is text, but the arguments before it are whole.
            if (yield from reader.peek()):
                writer.close()
                reader.give_back()
            reader.let_go()
        return begun


def _read_argument(reader: Reader, writer: ObjectWriter, key: str) -> Reading[bool]:
    """The value of an argument. Whether it is complete."""
    types = writer.key(key)
    character = yield from reader.peek()
    if character and character in "\"'" and types and "string" not in types:
        pieces: list[str] = []
        complete = yield from _read_string(reader, pieces.append)
        writer.raw(to_json("".join(pieces), types))
        return complete
    if character and character in "\"'[({":
        return (yield from _read_literal(reader, writer.raw))
    word: list[str] = []
    yield from reader.run(_WORD, word.append)
    writer.raw(_word_as_json("".join(word), types))
    return bool(word)


def _read_literal(reader: Reader, give: Give) -> Reading[bool]:
    """Give the JSON of a string, list, tuple or dict. Whether it is complete."""
    depth = 0
    comma = False
    while True:
        yield from reader.run(_BLANK, drop)
        character = yield from reader.peek()
        if not character:
            return False
        if character in ",:":
            yield from reader.take(1)
            comma = character == ","
            give("" if comma else ": ")
            continue
        if character in ")]}":
            yield from reader.take(1)
            depth -= 1
            comma = False  # Python allows one before the end
            give("}" if character == "}" else "]")
        else:
            give(", " if comma else "")
            comma = False
            if character in "([{":
                yield from reader.take(1)
                depth += 1
                give("{" if character == "{" else "[")
            elif not (yield from _read_item(reader, character, give)):
                return False
        if not depth:
            return True


def _read_item(reader: Reader, character: str, give: Give) -> Reading[bool]:
    if character in "\"'":
        give('"')
        complete = yield from _read_string(reader, lambda piece: give(json.dumps(piece, ensure_ascii=False)[1:-1]))
        give('"' if complete else "")
        return complete
    word: list[str] = []
    yield from reader.run(_WORD, word.append)
    give(_word_as_json("".join(word), frozenset()) if word else "")
    return bool(word)


def _read_string(reader: Reader, give: Give) -> Reading[bool]:
    """Give what a Python string says. Whether it is complete."""
    quotes = (yield from reader.literal(_TRIPLE_QUOTES)) or (yield from reader.take(1))
    end = marks(quotes)
    while True:
        yield from reader.run(_IN_QUOTES[quotes], give)
        character = yield from reader.peek()
        if not character:
            return False
        if character == "\\":
            give((yield from _read_escape(reader)))
        elif (yield from reader.literal(end)):
            return True
        else:
            give((yield from reader.take(1)))


def _read_escape(reader: Reader) -> Reading[str]:
    escape = yield from reader.take(2)
    kind = escape[1:]
    if kind not in _HEX_DIGITS:
        return _ESCAPES.get(kind, escape)
    digits = yield from reader.take(_HEX_DIGITS[kind])
    try:
        return chr(int(digits, 16)).encode("utf-8", "replace").decode()
    except (ValueError, OverflowError):
        return escape + digits


def _word_as_json(word: str, types: Types) -> str:
    """A number or a name. Names that Python does not have by itself are strings, and so is what has to be one."""
    if types == {"string"}:
        return json.dumps(word, ensure_ascii=False)
    if word in _WORDS or _NUMBER.fullmatch(word):
        return _WORDS.get(word, word)
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        number = math.inf
    return json.dumps(number if math.isfinite(number) else word, ensure_ascii=False)
