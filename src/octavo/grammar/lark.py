"""Grammars of free text in which something is written, in the dialect of Lark that llguidance reads.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

TEXT = "TEXT"
"""Any text without special tokens."""
ANYTHING = "(?s:.*)"
"""The same as a regular expression."""
_CONTROL = re.compile("[\x7f-\x9f]")
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Lark:
    """The rules of a grammar while it is written.

    Attributes:
        size: characters in them.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        """`special`: the texts and ids of the tokens that are special in the model's vocabulary. They are no text
        there, so that a grammar names them by their ids."""
        self.size = 0
        self._special = special
        self._names: dict[str, str] = {}
        self._tokens = re.compile(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True))) or '(?!)'})")

    def source(self, start: str) -> str:
        """The grammar in which `start` is all."""
        rules = [f"{name}: {expression}" for expression, name in self._names.items()]
        return "\n".join([f"start: {start}", *rules, f"{TEXT}: /{ANYTHING}/", ""])

    def begins_special(self, text: str) -> bool:
        """Whether the text begins with a special token."""
        return self._tokens.match(text) is not None

    def literal(self, text: str) -> str:
        """This text."""
        return " ".join(map(self._piece, self._pieces(text)))

    def _pieces(self, text: str) -> list[str]:
        """The special tokens in a text, and what is between them."""
        return [piece for piece in self._tokens.split(text) if piece]

    def _piece(self, piece: str) -> str:
        return f"<[{self._special[piece]}]>" if piece in self._special else quoted(piece)

    def within_special(self, text: str, end: int) -> str | None:
        """The special token in a text that goes on behind `end`, None if there is none."""
        place = 0
        for piece in self._pieces(text):
            if place < end < place + len(piece) and piece in self._special:
                return piece
            place += len(piece)
        return None

    def json(self, schema: Mapping[str, Any]) -> str:
        """A value of this schema, with blanks only where chat templates write them."""
        return self.rule(f"%json {json.dumps({**schema, 'x-guidance': _SPACING})}")

    def rule(self, expression: str) -> str:
        """A name for this expression, which is compiled once however often it is used."""
        return self._named(expression, "rule_{}")

    def _named(self, expression: str, pattern: str) -> str:
        if expression not in self._names:
            self._names[expression] = pattern.format(len(self._names))
            self.size += len(expression)
        return self._names[expression]

    def free_up_to(self, end: str, *, before: str = ANYTHING, excluded: Iterable[str] = ()) -> str:
        """Text up to and with the first `end`, in which special tokens may be.

        `before`: a regular expression of what comes before it. `excluded`: texts that are not in that.
        """
        first, *rest = self._pieces(end)
        without = _any_of(excluded)
        if first in self._special:
            return f"{self.free(before, excluded)} {self.literal(end)}"
        without = without and f"{ANYTHING}{without}{ANYTHING}{escaped(first)}"
        if not rest:
            return self.up_to(end, before=before, without=without)
        # The token after it tells whether this is the end.
        terminal = f"/{before}{escaped(first)}/" + (f" & ~/{without}/" if without else "")
        return " ".join([self._named(terminal, "LEXEME_{}"), *map(self._piece, rest)])

    def matched_up_to(self, lexeme: str, end: str) -> str:
        """A lexeme up to and with the first `end` behind it."""
        first, *rest = self._pieces(end)
        if first in self._special:
            return f"{lexeme} {self.literal(end)}"
        whole = self._named(f"{lexeme} {quoted(first)}", "LEXEME_{}")
        return " ".join([whole, *map(self._piece, rest)]) if rest else self._lazy(whole)

    def free(self, pattern: str = ANYTHING, excluded: Iterable[str] = ()) -> str:
        """Text that a regular expression matches, without these texts in it."""
        without = _any_of(excluded)
        if pattern == ANYTHING:
            return self.text(f"{ANYTHING}{without}{ANYTHING}") if without else TEXT
        terminal = f"/{pattern}/" + (f" & ~/{ANYTHING}{without}{ANYTHING}/" if without else "")
        return self._named(terminal, "LEXEME_{}")

    def up_to(self, *ends: str, before: str = ANYTHING, without: str = "", also: str = "") -> str:
        """Text up to and with the first of these ends: as long as none is written, anything may be.

        `before`: a regular expression of what comes before, `also`: a lexeme of it. `without`: a regular expression of
        what all of it must not be.
        """
        end = f"({'|'.join(map(escaped, ends))})"
        terminal = f"/{before}{end}/" + (f" & {self._named(f'{also} /{end}/', 'LEXEME_{}')}" if also else "")
        terminal += f" & ~/{without}/" if without else ""
        return self._lazy(self._named(terminal, "LEXEME_{}"))

    def _lazy(self, lexeme: str) -> str:
        """The shortest text that is this lexeme."""
        return self._named(lexeme, "lazy_{}[lazy]").removesuffix("[lazy]")

    def text(self, without: str) -> str:
        """Any text that is not of this regular expression."""
        return self._named(f"{TEXT} & ~/{without}/", "LEXEME_{}")


def either(expressions: Iterable[str]) -> str:
    """One of these expressions."""
    return f"({' | '.join(expressions)})"


def _any_of(texts: Iterable[str]) -> str:
    found = "|".join(map(escaped, texts))
    return found and f"({found})"


def escaped(text: str) -> str:
    """A regular expression of this text, to stand between slashes."""
    special = re.sub(r"[\\/.+*?()|\[\]{}^$#&~\"-]", lambda match: "\\" + match[0], text)
    return special.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def quoted(value: Any) -> str:
    """JSON, which is also how Lark writes strings, but for control characters that JSON need not escape."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
