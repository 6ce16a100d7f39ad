"""Answers that go in circles."""

import numpy as np

MAX_PATTERN = 1024
"""Tokens."""

MAX_COUNT = 2**31


def repetition_of(
    max_pattern_size: int = 0, min_pattern_size: int = 0, min_count: int = 0
) -> tuple[int, int, int] | None:
    """What vLLM's parameters of this mean as those of `Repetition`; None is never. Raises ValueError: they do not go
    together."""
    if max_pattern_size == min_pattern_size == min_count == 0:
        return None
    if max_pattern_size == 0 or min_count < 2:
        raise ValueError("max_pattern_size must be at least 1 and min_count at least 2, or all of them 0")
    if min_pattern_size > max_pattern_size:
        raise ValueError(f"min_pattern_size is {min_pattern_size}, more than max_pattern_size, {max_pattern_size}")
    return min_pattern_size or 1, max_pattern_size, min_count


class Repetition:
    """Finds out when the last tokens are the same pattern again and again.

    Args:
        smallest, largest: tokens of a pattern, from 1 to MAX_PATTERN.
        count: how often it must come, at least twice.
    """

    def __init__(self, smallest: int, largest: int, count: int) -> None:
        sizes = np.arange(smallest, largest + 1)
        # A pattern of p tokens has come c times when p * (c - 1) tokens in a row are what came p before them.
        self._enough = sizes * (count - 1)
        self._equal = np.zeros(len(sizes), np.int64)  # so many in a row, for each size
        self._recent = np.full(2 * largest, -1, np.int64)  # each token twice, so that the last ones are always in a row
        self._smallest, self._largest = smallest, largest
        self._next = 0

    def push(self, token: int) -> bool:
        """Whether this token makes it so."""
        recent, largest = self._recent, self._largest
        # The token p before this one is at p before its place; the largest p is that place itself, not yet overwritten.
        end = self._next + largest
        before = recent[end - largest : end - self._smallest + 1][::-1]
        self._equal += 1
        self._equal *= before == token
        recent[self._next] = recent[end] = token
        self._next = (self._next + 1) % largest
        return bool((self._equal >= self._enough).any())
