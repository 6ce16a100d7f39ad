"""Patterns at the end of what was generated, against looking at all of it."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.text.repetition import Repetition
from tests.properties import examples


def ends_with_repetition(tokens: list[int], smallest: int, largest: int, count: int) -> bool:
    for size in range(smallest, largest + 1):
        if len(tokens) >= size * count and tokens[-size * count :] == tokens[-size:] * count:
            return True
    return False


@examples(100)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=60),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)).map(sorted),
    count=st.integers(2, 4),
)
def test_it_is_found_at_its_last_token(tokens: list[int], sizes: list[int], count: int) -> None:
    smallest, largest = sizes
    found = Repetition(smallest, largest, count)
    for end in range(1, len(tokens) + 1):
        assert found.push(tokens[end - 1]) == ends_with_repetition(tokens[:end], smallest, largest, count)
