"""Text that knows which of its characters a chat template wrote itself.

Where a template puts messages together, only what it writes may become a control token. Its literals are `Written`,
what a client sent is `str`, and the operations that templates use carry the difference along. An operation that is not
here gives a `str`: nothing of it counts as the template's own. So whatever is forgotten here makes text of a token,
never a token of a client's text. The text itself, and all that a template can ask of it, is that of the `str` it would
be.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

Spans = tuple[tuple[int, int], ...]
_END = operator.itemgetter(1)

MAX_MEASURED = 1 << 24
"""Characters that are looked at to find where a text's spans have come to; what takes more is no template's own."""

MAX_REPEATED = 10_000
"""Spans of a text that is repeated; one that has more is no template's own any more."""


class Written(str):
    """A text; `spans` are the ranges in it that a template wrote, in order and apart from each other."""

    __slots__ = ("spans",)

    spans: Spans

    # `str` of one is the same one: templates are compiled into such calls.
    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> Any:
        return concat((self, other)) if type(other) in _TEXTS else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return concat((other, self)) if type(other) in _TEXTS else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        text, count = super().__mul__(times), max(operator.index(times), 0)
        if self.spans == ((0, len(self)),):
            return _with_spans(text, ((0, len(text)),) if text else ())
        if len(self.spans) * count > MAX_REPEATED:
            return text
        return concat([self] * count)

    __rmul__ = __mul__

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._cut(start, max(start, stop)) if step == 1 else super().__getitem__(index)
        character = super().__getitem__(index)
        start = index.__index__() % len(self)
        return self._cut(start, start + len(character))

    def _cut(self, start: int, stop: int) -> str:
        text = super().__getitem__(slice(start, stop))
        spans: list[tuple[int, int]] = []
        for number in range(bisect_right(self.spans, start, key=_END), len(self.spans)):
            a, b = self.spans[number]
            if a >= stop or start == stop:
                break
            spans.append((max(a, start) - start, min(b, stop) - start))
        return _with_spans(text, tuple(spans))

    def _cuts(self, pieces: Iterable[str], apart: int | None = 0) -> list[str]:
        """The same pieces of the text, which are in order and so far apart; None if spaces lie between them."""
        cuts, position = [], 0
        for piece in pieces:
            # A piece between spaces does not begin with one, unless it begins where the one before ended.
            start = position if apart is not None else self.find(piece, position)
            position = start + len(piece)
            cuts.append(self._cut(start, position))
            position += apart or 0
        return cuts

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._cuts(super().split(sep, maxsplit), None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._cuts(super().rsplit(sep, maxsplit), None if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._cuts(super().splitlines(True))
        ends = super().splitlines(keepends)
        return [line[: len(end)] for line, end in zip(lines, ends, strict=True)]

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = self._cuts(super().partition(sep))
        return before, found, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = self._cuts(super().rpartition(sep))
        return before, found, after

    def lstrip(self, chars: str | None = None) -> str:
        return self._cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(0, len(super().rstrip(chars)))

    def strip(self, chars: str | None = None) -> str:
        end = len(super().rstrip(chars))
        return self._cut(min(len(self) - len(super().lstrip(chars)), end), end)

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(super().removesuffix(suffix)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if old:
            return _joined(new, self.split(old, count))
        most, wanted = len(self) + 1, operator.index(count)  # before every character, and at the end
        places = most if wanted < 0 else min(wanted, most)
        if places == 0:
            return self
        return _joined(new, ["", *(self[place : place + 1] for place in range(places - 1)), self[places - 1 :]])

    def join(self, pieces: Iterable[str]) -> str:
        return _joined(self, pieces)

    def upper(self) -> str:
        return self.changed(str.upper)

    def lower(self) -> str:
        return self.changed(str.lower)

    def title(self) -> str:
        return self.changed(str.title)

    def capitalize(self) -> str:
        return self.changed(str.capitalize)

    def changed(self, change: Callable[[str], str]) -> str:
        """The text with its characters changed one by one, how depending at most on those before."""
        plain = "".join((self,))
        text = change(plain)
        if len(text) == len(self):
            return _with_spans(text, self.spans)
        if len(self) * len(self.spans) > MAX_MEASURED:
            return text

        def moved(place: int) -> int:
            return len(change(plain[:place]))

        return _with_spans(text, tuple((moved(start), moved(end)) for start, end in self.spans))


_TEXTS = (str, Written)


def written(text: str) -> Written:
    """A text that is a template's from its first character to its last."""
    return _make(text, ((0, len(text)),) if text else ())


def unwritten(text: str) -> Written:
    """A text nothing of which is a template's, with the operations of `Written`."""
    return text if isinstance(text, Written) else _make(text, ())


def concat(pieces: Iterable[str]) -> str:
    """The pieces as one text."""
    pieces = pieces if isinstance(pieces, list | tuple) else list(pieces)
    spans: list[tuple[int, int]] = []
    position = 0
    for piece in pieces:
        if type(piece) is Written:
            # Templates add to one text again and again: its spans are not gone through each time.
            moved = [(a + position, b + position) for a, b in piece.spans] if position else list(piece.spans)
            if spans and moved and spans[-1][1] == moved[0][0]:
                moved[0] = spans.pop()[0], moved[0][1]
            spans += moved
        position += len(piece)
    return _with_spans("".join(pieces), tuple(spans))


def _joined(separator: str, pieces: Iterable[str]) -> str:
    all_pieces: list[str] = []
    for piece in pieces:
        all_pieces += (separator, piece) if all_pieces else (piece,)
    return concat(all_pieces)


def _make(text: str, spans: Spans) -> Written:
    made = str.__new__(Written, text)
    made.spans = spans
    return made


def _with_spans(text: str, spans: Spans) -> str:
    return _make(text, spans) if spans else text
