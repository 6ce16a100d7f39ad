"""StopStrings against a plain search in the whole text."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import OctavoError
from octavo.text import StopStrings

TEXT = st.text("abc€", max_size=40)
STOPS = st.lists(st.text("abc€", min_size=1, max_size=5), max_size=4)


def whole(text: str, stops: list[str], include: bool, after: int = 0) -> tuple[str, str | None]:
    """The stop that ends first beyond `after` characters, of those the longest, found without increments."""
    ends = range(after + 1, len(text) + 1)
    found = [(end, -len(stop), stop) for end in ends for stop in stops if text[:end].endswith(stop)]
    if not found:
        return text, None
    end, _, stop = min(found)
    return text[: end if include else end - len(stop)], stop


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(position, len(text)) for position in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=10), st.booleans())
@example("aab", ["ab"], [1, 2], False)
@example("abcab", ["abcabc", "b"], [3], False)
@example("abcabd", ["bca", "abcab"], [], True)
def test_equals_a_search_in_the_whole_text(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    watch = StopStrings(stops, include)
    sent, matched = "", None
    for piece in cut(text, cuts):
        safe, matched = watch.push(piece)
        sent += safe
        if matched is not None:
            break
    if matched is None:
        sent += watch.flush()
    assert (sent, matched) == whole(text, stops, include)


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=10), st.integers(0, 10), st.booleans())
@example("\n\n", ["\n\n"], [1], 1, False)
@example("aaa", ["aa"], [2], 1, False)
@example("abcd", ["abc", "bcd"], [3], 1, True)
def test_a_stop_that_is_complete_too_early_does_not_count(
    text: str, stops: list[str], cuts: list[int], unarmed: int, include: bool
) -> None:
    """The first pieces are unarmed; what begins in them and ends after them is found."""
    pieces = cut(text, cuts)
    watch = StopStrings(stops, include)
    sent, matched = "", None
    for position, piece in enumerate(pieces):
        safe, matched = watch.push(piece, armed=position >= unarmed)
        sent += safe
        if matched is not None:
            break
    if matched is None:
        sent += watch.flush()
    assert (sent, matched) == whole(text, stops, include, after=sum(map(len, pieces[:unarmed])))


@given(TEXT, STOPS, st.booleans())
def test_holds_back_exactly_what_may_become_a_stop(text: str, stops: list[str], armed: bool) -> None:
    watch = StopStrings(stops)
    sent, matched = watch.push(text, armed)
    if matched is None:
        held = text.removeprefix(sent)
        suffixes = [text[start:] for start in range(len(text))]
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        assert held == next((suffix for suffix in suffixes if suffix in beginnings), "")
        assert watch.flush() == held


def test_without_stops_nothing_is_held() -> None:
    assert StopStrings([]).push("any text") == ("any text", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(OctavoError, match="empty"):
        StopStrings(["a", ""])
