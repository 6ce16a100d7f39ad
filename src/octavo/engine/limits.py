"""What a sequence may draw next, beside its biases and its grammar. It depends on the sequence's own tokens alone."""

from collections.abc import Sequence

import numpy as np

from octavo.backends.protocol import Int32, UInt32
from octavo.engine.request import SamplingParams
from octavo.engine.thinking import Thinking


class Limits:
    """Tokens that one sequence may not draw.

    Attributes:
        allowed: UInt32[ceil(V / 32)], a mask as in `LogitRows.masks`; None for any.
        banned: tokens that it may not draw next all the same.

    Args:
        spelling: the bytes of every token, which thinking budgets need.
    """

    __slots__ = ("_always", "_completions", "_lengths", "_never", "_thinking", "_vocab_size", "allowed", "banned")

    def __init__(self, params: SamplingParams, vocab_size: int, spelling: Sequence[bytes]) -> None:
        self._vocab_size = vocab_size
        self._always = mask(params.allowed_token_ids, vocab_size) if params.allowed_token_ids else None
        self._thinking = None if params.thinking is None else Thinking(params.thinking, spelling)
        self.allowed = self._always
        self._never = frozenset(word[0] for word in params.bad_words if len(word) == 1)
        self._completions: dict[tuple[int, ...], set[int]] = {}
        for *beginning, last in params.bad_words:
            if beginning:
                self._completions.setdefault(tuple(beginning), set()).add(last)
        self._lengths = sorted({len(beginning) for beginning in self._completions})
        self.banned: frozenset[int] = self._never

    @property
    def none_left(self) -> bool:
        """Whether anything may come from here on."""
        return self._always is None and not self._never and not self._lengths and self._thinking is None

    def follow(self, outputs: Int32) -> bool:
        """Find what may come after so many generated tokens. Returns whether that is something else than before."""
        if self._thinking is None:
            return self._find_banned(outputs)
        before, banned, thinking = self.allowed, self.banned, self._thinking
        thinking.follow(outputs[thinking.followed :].tolist())
        if thinking.forced is not None:
            self.allowed, self.banned = mask((thinking.forced,), self._vocab_size), frozenset()
        else:
            self.allowed = self._always
            self._find_banned(outputs)
            if thinking.over:
                self._thinking = None
        return self.allowed is not before or self.banned != banned

    def _find_banned(self, outputs: Int32) -> bool:
        before, self.banned = self.banned, self._never
        for length in self._lengths:
            if length > len(outputs):
                break
            end = self._completions.get(tuple(outputs[len(outputs) - length :].tolist()))
            if end:
                self.banned |= end
        return self.banned != before


def mask(tokens: tuple[int, ...], vocab_size: int) -> UInt32:
    """UInt32[ceil(V / 32)] with the bits of some tokens set."""
    bits: UInt32 = np.zeros(-(-vocab_size // 32), np.uint32)
    ids = np.array(tokens, np.uint32)
    np.bitwise_or.at(bits, ids // 32, np.uint32(1) << (ids % 32))
    return bits
