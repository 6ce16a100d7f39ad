"""The one call of the tokenizer's library that makes tokens of a text, and what is checked around it."""

from __future__ import annotations

import re

import tokenizers

from octavo.errors import OctavoError

_SURROGATE = re.compile("[\ud800-\udfff]")


class TooManyTokens(OctavoError):
    """A text is longer than what the caller can use. `count` is a lower bound of its tokens."""

    def __init__(self, count: int, *, exact: bool) -> None:
        super().__init__(f"the text has {'' if exact else 'at least '}{count} tokens")
        self.count = count
        self.exact = exact


def encoded(backend: tokenizers.Tokenizer, text: str, limit: int | None = None) -> tokenizers.Encoding:
    """A text's tokens, without any around it.

    Raises TooManyTokens: there are more than `limit`. That is known before the ids become Python's, which takes long
    for millions.
    """
    [encoding] = backend.encode_batch_fast([whole_characters(text)], add_special_tokens=False)
    if limit is not None and len(encoding) > limit:
        raise TooManyTokens(len(encoding), exact=True)
    return encoding


def whole_characters(text: str) -> str:
    """A lone surrogate (half of a JSON \\u pair) is not a character, and UTF-8 has no bytes for it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _SURROGATE.sub("\ufffd", text)
    return text
