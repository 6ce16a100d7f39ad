"""Grammars of calls, in the dialect of Lark that llguidance reads (its docs/syntax.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

TEXT = "TEXT"
"""Any text without special tokens."""
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Lark:
    """The rules of a grammar while it is written."""

    def __init__(self, special: Mapping[str, int]) -> None:
        """`special`: the texts and ids of the tokens that are special in the model's vocabulary. They are no text
        there, so that a grammar names them by their ids."""
        self._special = special
        self._names: dict[str, str] = {}
        self._tokens = re.compile(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True))) or '(?!)'})")

    def source(self, start: str) -> str:
        """The grammar in which `start` is all."""
        rules = [f"{name}: {expression}" for expression, name in self._names.items()]
        return "\n".join([f"start: {start}", *rules, f"{TEXT}: /(?s:.*)/", ""])

    def begins_special(self, text: str) -> bool:
        """Whether the text begins with a special token."""
        return self._tokens.match(text) is not None

    def literal(self, text: str) -> str:
        """This text."""
        pieces = [piece for piece in self._tokens.split(text) if piece]
        return " ".join(f"<[{self._special[piece]}]>" if piece in self._special else _quoted(piece) for piece in pieces)

    def json(self, schema: Mapping[str, Any]) -> str:
        """A value of this schema, with blanks only where chat templates write them."""
        return self.rule(f"%json {json.dumps({**schema, 'x-guidance': _SPACING})}")

    def rule(self, expression: str) -> str:
        """A name for this expression, which is compiled once however often it is used."""
        return self._named(expression, "rule_{}")

    def _named(self, expression: str, pattern: str) -> str:
        return self._names.setdefault(expression, pattern.format(len(self._names)))

    def up_to(self, *ends: str, before: str = "(?s:.*)", without: str = "", also: str = "") -> str:
        """Text up to and with the first of these ends: as long as none is written, anything may be.

        `before`, `also`: regular expressions of what comes before. `without`: one of what all of it must not be.
        """
        end = f"({'|'.join(map(escaped, ends))})"
        terminal = f"/{before}{end}/" + (f" & /{also}{end}/" if also else "")
        terminal += f" & ~/{without}/" if without else ""
        lexeme = self._named(terminal, "LEXEME_{}")
        return self._named(lexeme, "lazy_{}[lazy]").removesuffix("[lazy]")

    def text(self, without: str) -> str:
        """Any text that is not of this regular expression."""
        return self._named(f"{TEXT} & ~/{without}/", "LEXEME_{}")


def either(expressions: Iterable[str]) -> str:
    """One of these expressions."""
    return f"({' | '.join(expressions)})"


def escaped(text: str) -> str:
    """A regular expression of this text, to stand between slashes."""
    special = re.sub(r"[\\/.+*?()|\[\]{}^$#&~\"-]", lambda match: "\\" + match[0], text)
    return special.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
