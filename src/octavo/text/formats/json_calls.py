"""Calls written as JSON objects, {"name": …, "arguments": {…}}, alone or in a list."""

from __future__ import annotations

import json
import re

from octavo.grammar.lark import Lark
from octavo.text.formats.grammar import CallGrammar
from octavo.text.formats.reader import Reader, decoded
from octavo.text.scanner import Marks, Reading, drop
from octavo.text.tools import Tool

_NAME = frozenset({"name"})
_ARGUMENTS = frozenset({"arguments", "parameters"})
_OTHER = frozenset({"type", "id"})
_SEPARATORS = re.compile(r"[\s,;]+")
_OPEN, _CLOSE = Marks("{"), Marks("}")
_OPEN_LIST, _CLOSE_LIST = Marks("["), Marks("]")
_COLON = Marks(":")


def read_calls(reader: Reader, *, marked: bool) -> Reading[bool]:
    """One call, or a list of them. Whether there was one; if not, what was read is still held.

    `marked`: a marker before them says that they are calls. Without one an object is a call if its name is one of the
    tools', and at the beginning of an answer also with another name if it has arguments; and nothing else may come
    before these.
    """
    if not (yield from reader.literal(_OPEN_LIST)):
        return (yield from _read_call(reader, marked=marked))
    yield from reader.blanks()
    if not (yield from _read_call(reader, marked=marked)):
        return False
    while True:
        reader.hold()
        yield from reader.run(_SEPARATORS, drop)
        if (yield from reader.literal(_CLOSE_LIST)):
            reader.let_go()
            return True
        if not (yield from _read_call(reader, marked=marked)):
            yield from reader.give_back_unless_cut()
            return True


def read_bare_calls(reader: Reader, tag: str = "") -> Reading[None]:
    """An answer in which calls stand anywhere with nothing around them, or with a tag before them."""
    tags = Marks(tag) if tag else None
    opening = Marks(*filter(None, (tag, "{", "[")))
    while (yield from reader.up_to(opening, reader.text)):
        reader.hold()
        marked = tags is not None and bool((yield from reader.literal(tags)))
        yield from reader.blanks()
        if not (yield from read_calls(reader, marked=marked)):
            reader.give_back()
            continue
        reader.hold()
        yield from reader.run(_SEPARATORS, drop)
        if (yield from reader.peek()) not in ("{", "["):
            reader.text(reader.let_go().lstrip())


def json_call(lark: Lark, tool: Tool, before: str = "", after: str = "", *, key: str = "arguments") -> CallGrammar:
    """The grammar of one call as an object, between two texts."""
    arguments = lark.literal(f', "{key}": ')
    closing = lark.literal("}" + after)
    return CallGrammar(f'{before}{{"name": {json.dumps(tool.name)}', f"{arguments} {lark.json(tool.schema)} {closing}")


class _Call:
    """What is known of a call whose object is being read."""

    def __init__(self, reader: Reader, marked: bool) -> None:
        self._reader = reader
        self._marked = marked
        self._early: list[str] = []
        self._has_arguments = False
        self.name: str | None = None
        self.begun = False

    def keeps(self, key: str) -> bool:
        """Whether this may be a call's key, where a call has yet to show that it is one."""
        return self._marked or self.begun or key in _NAME | _ARGUMENTS | _OTHER

    def read_value(self, key: str) -> Reading[bool]:
        """The value of a key. Whether it is complete."""
        reader = self._reader
        if key in _NAME and self.name is None:
            pieces: list[str] = []
            if (yield from reader.peek()) != '"' or not (yield from reader.string(pieces.append)):
                return False
            self.name = decoded("".join(pieces))
            if self._marked or self.name in reader.tools or (self._has_arguments and reader.is_silent):
                self.begin()
            return self.begun or reader.is_silent
        if key in _ARGUMENTS and not self._has_arguments:
            self._has_arguments = True
            if self.name is not None:
                self.begin()
            return (yield from self._read_arguments())
        return (yield from reader.value(drop))

    def begin(self) -> None:
        """It is a call."""
        if not self.begun:
            self.begun = True
            self._reader.call(self.name or "")
            self._reader.arguments("".join(self._early))

    def end(self, closed: bool) -> bool:
        """The object's end, or what comes instead of it. Whether it was a call."""
        if self.begun and closed and not self._has_arguments:
            self._reader.arguments("{}")
        return self.begun

    def _read_arguments(self) -> Reading[bool]:
        reader = self._reader
        give = reader.arguments if self.begun else self._early.append
        if (yield from reader.peek()) != '"':
            return (yield from reader.value(give))
        # JSON within a JSON string, as OpenAI's API has it.
        pieces: list[str] = []
        complete = yield from reader.string(pieces.append)
        give(decoded("".join(pieces)))
        return complete


def _read_call(reader: Reader, *, marked: bool) -> Reading[bool]:
    if not (yield from reader.literal(_OPEN)):
        return False
    yield from reader.run(_SEPARATORS, drop)
    if (yield from reader.peek()) != '"':
        return False
    call = _Call(reader, marked)
    while (yield from reader.peek()) == '"':
        key: list[str] = []
        if not (yield from reader.string(key.append)) or not call.keeps(decoded("".join(key))):
            break
        yield from reader.blanks()
        if not (yield from reader.literal(_COLON)):
            break
        yield from reader.blanks()
        if not (yield from call.read_value(decoded("".join(key)))):
            break
        yield from reader.run(_SEPARATORS, drop)
    return call.end(bool((yield from reader.literal(_CLOSE))))
