"""Token ids to text while they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from octavo.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode` for one choice. What `push` and `flush` return joins to exactly what `decode`
    gives for all ids at once, and no piece ever ends in half a UTF-8 character: at most three bytes wait for the
    token that completes them.

    It reads the tokens' bytes through Python's incremental UTF-8 decoder, about a microsecond a token.
    `tokenizers.decoders.DecodeStream` decodes a window of tokens twice a step, cannot give back what it holds at the
    end, and with SentencePiece byte tokens raises or contradicts its own `decode`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """With `prompt_token_ids` the text goes on where the prompt ends, as if the prompt had been pushed and its
        text thrown away: a first token's leading space is kept, and a character that the prompt cut is completed.
        `shown` are special tokens that are not skipped."""
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids - shown if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = tokenizer.strips_space and not any(map(self._bytes, prompt_token_ids))
        self._decoder.decode(self._tail(prompt_token_ids))

    def _bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped else self._token_bytes(token_id)

    def _tail(self, token_ids: Sequence[int]) -> bytes:
        """The last bytes: an unfinished character has at most three, and UTF-8 can be read from anywhere."""
        tail = b""
        for token_id in reversed(token_ids):
            if len(tail) >= 3:
                break
            tail = self._bytes(token_id) + tail
        return tail[-3:]

    def push(self, token_id: int) -> str:
        """The text that this token completes, often "" for special tokens and parts of characters."""
        data = self._bytes(token_id)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """U+FFFD where the last token left a character unfinished, else ""."""
        return self._decoder.decode(b"", final=True)
