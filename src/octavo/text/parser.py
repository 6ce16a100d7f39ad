"""From the text of one answer to its parts, while it arrives."""

from __future__ import annotations

from typing import Protocol

from octavo.text.parts import Part, Text


class Parser(Protocol):
    """Reads one answer. However the text is cut into pieces, the parts come to the same when they are joined."""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as the text says."""
        ...

    @property
    def in_call(self) -> bool:
        """Whether there is a call so far, and the last one's arguments are not whole."""
        ...

    def push(self, text: str) -> list[Part]:
        """The parts that this piece of text completes. What may yet turn out to be markup is held back."""
        ...

    def flush(self) -> list[Part]:
        """What was held back, now that no more text comes."""
        ...


class PlainParser:
    """Knows no markup: all of it is text."""

    thinking = False
    in_call = False

    def push(self, text: str) -> list[Part]:
        """The text."""
        return [Text(text)] if text else []

    def flush(self) -> list[Part]:
        """Nothing: nothing is held back."""
        return []
