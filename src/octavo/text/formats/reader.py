"""What formats of tool calls read with: the scanner, and the parts that what they read comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from octavo.text.parts import Part, Reasoning, Text, ToolCall, join_parts
from octavo.text.scanner import Reading, Scanner, drop
from octavo.text.tools import Tool


class Reader(Scanner):
    """A scanner that collects parts. Its methods for parts take pieces; a `call` begins the next call.

    Attributes:
        tools: what may be called, by name.
        calls: how many calls have begun.
        is_silent: whether the answer has no text yet, but for blanks.
        thinking: whether what is read is reasoning.
    """

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        super().__init__()
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self.calls = 0
        self.is_silent = True
        self.thinking = False
        self._parts: list[Part] = []
        self._last_arguments: list[str] = []

    @property
    def in_call(self) -> bool:
        """Whether there is a call, and the last one's arguments are not whole."""
        return self.calls > 0 and not _is_object("".join(self._last_arguments))

    def text(self, piece: str) -> None:
        """For the client to read."""
        if piece:
            self.is_silent = self.is_silent and piece.isspace()
            self._parts.append(Text(piece))

    def reasoning(self, piece: str) -> None:
        """What the model thinks."""
        if piece:
            self._parts.append(Reasoning(piece))

    def call(self, name: str) -> None:
        """The next call begins. What was held was its opening."""
        self.let_go()
        self._parts.append(ToolCall(self.calls, name))
        self.calls += 1
        self._last_arguments.clear()

    def arguments(self, piece: str) -> None:
        """More of the last call's arguments, as JSON."""
        if piece:
            self._parts.append(ToolCall(self.calls - 1, "", piece))
            self._last_arguments.append(piece)

    def give_back(self) -> None:
        """What was held is text after all."""
        self.text(self.let_go())

    def give_back_unless_cut(self) -> Reading[None]:
        """What was held within a list of calls is text, unless it is the beginning of a call that the end of the text
        cuts."""
        if (yield from self.peek()):
            self.give_back()
        self.let_go()

    def parts(self) -> list[Part]:
        """The parts since they were last asked for."""
        parts, self._parts = self._parts, []
        return parts if len(parts) < 2 else join_parts(parts)


class ReadingParser:
    """A `Parser` of a format that is written as one reading of the whole answer."""

    def __init__(self, read: Callable[[Reader], Reading[None]], tools: Sequence[Tool] = ()) -> None:
        self._reader = Reader(tools)
        self._reading = read(self._reader)

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._reader.thinking

    @property
    def in_call(self) -> bool:
        """Whether the last call's arguments are not whole."""
        return self._reader.in_call

    def push(self, text: str) -> list[Part]:
        """The parts that this piece of text completes."""
        if not text:
            return []
        self._reader.push(text)
        next(self._reading)
        return self._reader.parts()

    def flush(self) -> list[Part]:
        """What was held back."""
        self._reader.end()
        next(self._reading, None)
        self._reader.give_back()
        return self._reader.parts()


def _is_object(text: str) -> bool:
    """Whether a text is an object from its first brace to its last, as models write JSON."""
    scanner = Scanner()
    scanner.push(text.lstrip())
    scanner.end()
    reading = scanner.value(drop)
    try:
        next(reading)
    except StopIteration as end:
        return text.lstrip().startswith("{") and bool(end.value)
    raise AssertionError("the text has ended")


def decoded(string: str) -> str:
    """What a JSON string says; without its quotes as it stands, if it is not valid."""
    try:
        text: str = json.loads(string, strict=False)
    except ValueError:
        return string.strip('"')
    # An escape may be half a surrogate pair, which no encoding has.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
