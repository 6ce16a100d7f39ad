"""Answers that go in circles."""

import numpy as np

MAX_PATTERN = 1024
"""Tokens."""


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
