"""Text that arrives in pieces, for parsers written as if all of it were there.

A parser is a generator over a `Scanner`: where the text has to go on for it to know what it reads, it waits in a bare
`yield`. What each reading below returns depends on the text alone and never on where it was cut, and so does what a
parser makes of it. Each character is looked at a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Something that is read, and comes to a T."""
Give = Callable[[str], object]
"""Takes a piece of what is read, as soon as it is certain."""


class Marks:
    """Strings to look for, none of which begins with another."""

    def __init__(self, *marks: str) -> None:
        self._marks = frozenset(marks)
        self._whole = re.compile("|".join(map(re.escape, marks)))
        self._or_cut = re.compile("|".join(map(_or_cut, marks)))

    def find(self, text: str, start: int, ended: bool) -> tuple[int, str] | None:
        """Where the first mark begins, and that mark; "" for what may become one when the text goes on."""
        match = (self._whole if ended else self._or_cut).search(text, start)
        return match and (match.start(), self._name(match[0]))

    def here(self, text: str, start: int, ended: bool) -> str | None:
        """The mark that begins at `start`; "" for what may become one, None if there is none."""
        match = (self._whole if ended else self._or_cut).match(text, start)
        return match and self._name(match[0])

    def _name(self, found: str) -> str:
        return found if found in self._marks else ""


def _or_cut(mark: str) -> str:
    """A pattern for the mark, or for its beginning at the end of the text: for "abc" a(?:b(?:c|\\Z)|\\Z)."""
    pattern = re.escape(mark[-1])
    for character in reversed(mark[:-1]):
        pattern = f"{re.escape(character)}(?:{pattern}|\\Z)"
    return pattern


@cache
def marks(*texts: str) -> Marks:
    """The marks of these texts, made once."""
    return Marks(*texts)


def marks_on_lines(*texts: str) -> Marks:
    """The marks of these texts, together with one or two line feeds that may come before them as templates write it."""
    return marks(*("\n" * count + text for text in texts for count in range(3)))


_BLANK = re.compile(r"\s+")
_STRING = re.compile(r'[^"\\]+')
_STRING_OF_A_LINE = re.compile(r'[^"\\\n]+')
_BETWEEN = re.compile(r"[\s,:]+")
_SCALAR = re.compile(r"[-+.\w]+")


class Scanner:
    """Reads text that is pushed in pieces. While text is held, what is read is kept to be given back."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._held: list[str] | None = None

    def push(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def hold(self, mark: str = "") -> None:
        """Keep what is read from here on, and the mark before it."""
        self._held = [mark]

    def let_go(self) -> str:
        """What was held; nothing is any longer."""
        held, self._held = self._held, None
        return "".join(held or ())

    def rest(self) -> str:
        """What is not read yet."""
        return self._text[self._at :]

    def _take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        if self._held is not None:
            self._held.append(piece)
        return piece

    def until(self, marks: Marks, give: Give, *, in_call: bool = False) -> Reading[str]:
        """Give what comes before the next mark; the mark, which is read too, or "" at the end of the text."""
        mark = yield from self.up_to(marks, give, in_call=in_call)
        self._take(self._at + len(mark))
        return mark

    def up_to(self, marks: Marks, give: Give, *, in_call: bool = False) -> Reading[str]:
        """Give what comes before the next mark; the mark, which is yet to be read, or "" at the end of the text.

        `in_call`: a mark that the end of the text cuts is left out. Elsewhere it is text.
        """
        while True:
            found = marks.find(self._text, self._at, self._ended and not in_call)
            start, mark = found or (len(self._text), "")
            if start > self._at:
                give(self._take(start))
            if mark:
                return mark
            if self._ended:
                self._take(len(self._text))
                return ""
            yield

    def literal(self, marks: Marks, *, in_call: bool = False) -> Reading[str]:
        """The mark that comes next, which is read; "" if none does, and then nothing is read.

        `in_call`: a mark that the end of the text cuts is read over.
        """
        yield from self.peek()
        while (mark := marks.here(self._text, self._at, self._ended and not in_call)) == "":
            if self._ended:
                self._take(len(self._text))
                return ""
            yield
        return self._take(self._at + len(mark)) if mark else ""

    def run(self, characters: re.Pattern[str], give: Give) -> Reading[None]:
        """Give what comes next of these characters (a pattern that matches one or more of them)."""
        while True:
            if match := characters.match(self._text, self._at):
                give(self._take(match.end()))
            if self._at < len(self._text) or self._ended:
                return
            yield

    def blanks(self) -> Reading[None]:
        """Read over white space."""
        return self.run(_BLANK, drop)

    def peek(self) -> Reading[str]:
        """The next character, which is not read; "" at the end of the text."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def take(self, count: int) -> Reading[str]:
        """The next characters, so many of them as there are."""
        while len(self._text) - self._at < count and not self._ended:
            yield
        return self._take(min(self._at + count, len(self._text)))

    def value(self, give: Give, *, strict: bool = False) -> Reading[bool]:
        """Give the characters of one JSON value, as written. Whether it is complete: it also ends where the text
        does, and outside of strings before a character that JSON does not have. `strict`: as for `string`."""
        depth = 0
        while True:
            character = yield from self.peek()
            if character == '"':
                if not (yield from self.string(give, strict=strict)):
                    return False
            elif character and character in "{[":
                depth += 1
                give(self._take(self._at + 1))
            elif depth and character and character in "}]":
                depth -= 1
                give(self._take(self._at + 1))
            else:
                pattern = _BETWEEN if depth and _BETWEEN.match(character) else _SCALAR
                if not pattern.match(character):
                    return False
                yield from self.run(pattern, give)
            if not depth:
                return True

    def string(self, give: Give, *, strict: bool = False) -> Reading[bool]:
        """Give the characters of the JSON string that begins here, quotes included. Whether it is complete.

        `strict`: it ends before a line feed, which JSON has in no string but models write.
        """
        characters = _STRING_OF_A_LINE if strict else _STRING
        give(self._take(self._at + 1))
        while True:
            yield from self.run(characters, give)
            character = yield from self.peek()
            if character == "\n":
                return False
            if character != "\\":
                if character:
                    give(self._take(self._at + 1))
                return bool(character)
            give((yield from self.take(2)))


def drop(piece: str) -> None:
    """Takes what nobody wants."""
