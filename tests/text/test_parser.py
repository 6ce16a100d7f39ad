"""The stage between text and an API: parts that do not depend on how the text was cut."""

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.parser import Parser, PlainParser
from octavo.text.parts import Finish, Part, Reasoning, Text, ToolCall, join_parts

OPEN, CLOSE = "<think>", "</think>"


class ThinkParser:
    """A parser with markup: the shortest that holds text back."""

    in_call = False

    def __init__(self) -> None:
        self._tags = [OPEN, CLOSE]
        self._held = ""

    @property
    def thinking(self) -> bool:
        return self._tags == [CLOSE]

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        text = self._held + text
        while self._tags and self._tags[0] in text:
            before, _, text = text.partition(self._tags[0])
            parts += self._piece(before)
            self._tags.pop(0)
        longest = len(self._tags[0]) - 1 if self._tags else 0
        held = next((n for n in range(min(longest, len(text)), 0, -1) if self._tags[0].startswith(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return parts + self._piece(text[: len(text) - held])

    def flush(self) -> list[Part]:
        return self._piece(self._held)

    def _piece(self, text: str) -> list[Part]:
        return [] if not text else [Reasoning(text) if self._tags == [CLOSE] else Text(text)]


def run(parser: Parser, pieces: list[str]) -> list[Part]:
    return join_parts([part for piece in pieces for part in parser.push(piece)] + parser.flush())


@pytest.mark.parametrize("make", [PlainParser, ThinkParser])
@given(
    text=st.lists(st.sampled_from([OPEN, CLOSE, "<", "think", "a", "é", "</"])).map("".join),
    cuts=st.lists(st.integers(0, 60), max_size=12),
)
def test_cuts_make_no_difference(make: Callable[[], Parser], text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    whole = run(make(), [text])
    assert run(make(), pieces) == whole
    said = "".join(part.text for part in whole if isinstance(part, Text | Reasoning))
    assert said == text if make is PlainParser else len(said) <= len(text)


def test_what_the_example_reads() -> None:
    parts = run(ThinkParser(), list(f"a{OPEN}why{CLOSE}b<th"))
    assert parts == [Text("a"), Reasoning("why"), Text("b<th")]


PIECES = st.one_of(
    st.text(max_size=3).map(Text),
    st.text(max_size=3).map(Reasoning),
    st.builds(ToolCall, st.integers(0, 2), st.just(""), st.text(max_size=3)),
)


@given(parts=st.lists(PIECES))
def test_joining_keeps_everything_in_order(parts: list[Part]) -> None:
    def spelled(parts: list[Part]) -> str:
        return re.sub(r"(.)\1*", r"\1", "".join(kind(part) for part in parts))

    def kind(part: Part) -> str:
        return str(part.index) if isinstance(part, ToolCall) else type(part).__name__[0]

    def content(parts: list[Part]) -> str:
        return "".join(part.arguments if isinstance(part, ToolCall) else part.text for part in parts)  # type: ignore[union-attr]

    joined = join_parts([*parts, Finish("stop")])
    assert joined.pop() == Finish("stop")
    assert content(joined) == content(parts)
    assert spelled(joined) == spelled(parts)
    assert len(spelled(joined)) == len(joined)


def test_a_call_keeps_its_name() -> None:
    parts: list[Part] = [ToolCall(0, "f", '{"a"'), ToolCall(0, "", ": 1}"), ToolCall(1, "g", "{}")]
    assert join_parts(parts) == [ToolCall(0, "f", '{"a": 1}'), ToolCall(1, "g", "{}")]
