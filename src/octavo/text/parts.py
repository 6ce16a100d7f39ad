"""What a model's answer is made of. A part may be a piece: pieces of the same thing in a row make up all of it.

Structs, because one is made for every token: dataclasses take four times as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from msgspec import Struct


class Text(Struct):
    """What the client is meant to read."""

    text: str


class Reasoning(Struct):
    """What the model thinks before it answers."""

    text: str


class ToolCall(Struct):
    """A call of one of the client's functions.

    Attributes:
        index: which of the answer's calls, from 0.
        name: with the first piece of a call, empty with the others.
        arguments: JSON.
    """

    index: int
    name: str = ""
    arguments: str = ""


class Finish(Struct):
    """The end of an answer, its last part.

    Attributes:
        reason: "stop", "length" or "repetition".
        stop: the stop string, or the client's stop token, that ended it; "timeout" if its time was over;
            "repetition_detected".
        cut_call: whether it came within a call, of which nobody should take the arguments for whole. A model that
            ends its turn there has made a mistake in a whole one.
    """

    reason: str
    stop: str | int | None = None
    cut_call: bool = False


Part = Text | Reasoning | ToolCall | Finish


def join_parts(parts: Iterable[Part]) -> list[Part]:
    """The parts with pieces of the same thing joined."""
    return [_joined(list(pieces)) for _, pieces in groupby(parts, _thing)]


def _thing(part: Part) -> tuple[type[Part], int]:
    return type(part), part.index if isinstance(part, ToolCall) else 0


def _joined(pieces: list[Part]) -> Part:
    match pieces[0]:
        case Text():
            return Text("".join([piece.text for piece in pieces if isinstance(piece, Text)]))
        case Reasoning():
            return Reasoning("".join([piece.text for piece in pieces if isinstance(piece, Reasoning)]))
        case ToolCall(index, name):
            arguments = [piece.arguments for piece in pieces if isinstance(piece, ToolCall)]
            return ToolCall(index, name, "".join(arguments))
        case Finish():
            return pieces[-1]
