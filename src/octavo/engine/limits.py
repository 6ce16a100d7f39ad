"""What a sequence may draw next, beside its biases and its grammar. It depends on the sequence's own tokens alone."""

import numpy as np

from octavo.backends.protocol import Int32, UInt32
from octavo.engine.request import SamplingParams


class Limits:
    """Tokens that one sequence may not draw.

    Attributes:
        allowed: UInt32[ceil(V / 32)], a mask as in `LogitRows.masks`; None for any.
        banned: tokens that it may not draw next all the same.
    """

    __slots__ = ("_completions", "_lengths", "_never", "allowed", "banned")

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.allowed = mask(params.allowed_token_ids, vocab_size) if params.allowed_token_ids else None
        self._never = frozenset(word[0] for word in params.bad_words if len(word) == 1)
        self._completions: dict[tuple[int, ...], set[int]] = {}
        for *beginning, last in params.bad_words:
            if beginning:
                self._completions.setdefault(tuple(beginning), set()).add(last)
        self._lengths = sorted({len(beginning) for beginning in self._completions})
        self.banned: frozenset[int] = self._never

    def follow(self, outputs: Int32) -> bool:
        """Find what may come after so many generated tokens. Returns whether that is something else than before."""
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
