"""StopStrings against a plain search in the whole text."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import OctavoError
from octavo.text import StopStrings

TEXT = st.text("abc€", max_size=40)
STOPS = st.lists(st.text("abc€", min_size=1, max_size=5), max_size=4)


def whole(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The stop that ends first, of those the longest, found without increments."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
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


@given(TEXT, STOPS)
def test_holds_back_exactly_what_may_become_a_stop(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    sent, matched = watch.push(text)
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
