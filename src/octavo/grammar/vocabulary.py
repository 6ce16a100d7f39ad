"""The tokens of a model as grammars see them: bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

EDGE = "\x02"
"""Stands before a text whose beginning the tokenizer would change (SentencePiece puts a space there)."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All that a grammar must know of a model's tokens.

    Attributes:
        tokens: the bytes of every id that the model can draw; empty for ids without a token.
        special: tokens that no text contains. A grammar allows one only by its name, `<|im_end|>`, or number, `<[2]>`.
        ends: tokens that end an answer; allowed wherever the grammar may end.
        encoder: the tokenizer as `tokenizers` writes it: of the ways to spell what a grammar leaves no choice about,
            the model knows the tokenizer's.
    """

    tokens: list[bytes]
    special: list[int]
    ends: list[int]
    encoder: str

    def open(self) -> LLTokenizer:
        """Make it ready for grammars, whose masks have `len(tokens)` bits. Takes about half a second."""
        from llguidance import LLTokenizer

        spelling = _Spelling(self)
        opened = LLTokenizer(spelling, eos_token=self.ends)  # type: ignore[arg-type]
        spelling.greedy = opened.greedy_tokenize
        return opened


class _Spelling:
    """What llguidance asks of a tokenizer: the bytes of its tokens, and how it spells a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Tokenizer

        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special
        self.eos_token_id = vocabulary.ends[0]
        self.greedy: Callable[[str], list[int]] = lambda text: []
        self._special = frozenset(vocabulary.special)
        self._encoder = Tokenizer.from_str(vocabulary.encoder)
        self._edge = self._encode(EDGE)

    def __call__(self, text: str) -> list[int]:
        """The tokens that spell a text, whatever the tokenizer would add to it; it must not raise."""
        ids = self._encode(EDGE + text)
        if ids[: len(self._edge)] == self._edge and self._spells(ids[len(self._edge) :], text):
            return ids[len(self._edge) :]
        return self.greedy(text)

    def _encode(self, text: str) -> list[int]:
        [encoding] = self._encoder.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def _spells(self, ids: list[int], text: str) -> bool:
        """Whether they are ordinary tokens with just these bytes."""
        tokens, special = self.tokens, self._special
        if not all(n < len(tokens) and n not in special for n in ids):
            return False
        return b"".join([tokens[n] for n in ids]) == text.encode()
