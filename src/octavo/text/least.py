"""How many tokens a text has at least, told from its bytes in a fraction of the time that tokenising takes.

A token with some byte in it is at most as long as the longest token that has this byte. If every byte of a text counts
for one over that length, then those of one token together count for one at most, and all of them for no more tokens
than there are.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import models

from octavo.text.spec import BYTE_OF_CHARACTER, TokenizerSpec

_PIECE = 1 << 18
"""Characters that are counted at a time, so that other threads have their turn."""

_WORD_MARK = "\u2581"

Weights = npt.NDArray[np.float64]


def least_tokens(weights: Weights, text: str) -> int:
    """A lower bound of the tokens of a text whose bytes, in UTF-8, count for so much."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(text), _PIECE):
        data = text[start : start + _PIECE].encode(errors="ignore")  # half of a surrogate pair counts for nothing
        counts += np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return max(math.ceil(float(counts @ weights) * (1 - 1e-9)), 0)  # the sum is not exact


def byte_weights(spec: TokenizerSpec) -> Weights | None:
    """Float64[256], what each byte counts for. None for a tokenizer that may leave out or join any number of
    characters, be it spaces or unknown ones: about its texts nothing can be said."""
    backend = spec.backend
    normalizers, splitters = _steps(backend.normalizer, "normalizers"), _steps(backend.pre_tokenizer, "pretokenizers")
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if spec.pieces.byte_level:
        spells_all = any(step["type"] == "ByteLevel" for step in splitters)
    else:
        model = backend.model
        spells_all = isinstance(model, models.BPE) and model.byte_fallback
        spells_all = spells_all and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    if not (spells_all and all(map(_keeps_text, normalizers)) and all(map(_keeps_text, splitters))):
        return None
    added = backend.get_added_tokens_decoder().values()
    spellings = {spec.pieces.to_bytes(piece) for piece in vocabulary} | {token.content.encode() for token in added}
    if not spec.pieces.byte_level:
        # A text may have the mark itself, which is longer than the space that it stands for.
        spellings |= {piece.encode() for piece in vocabulary}
        spellings |= {b" " * len(piece.encode()) for piece in vocabulary if _WORD_MARK in piece}
    weights = 1 / _longest(spellings)
    if spec.pieces.byte_level:  # bytes that training has never seen are left out
        weights[[byte for character, byte in BYTE_OF_CHARACTER.items() if character not in vocabulary]] = 0
    if any(step["type"] == "NFC" for step in normalizers):
        weights = _when_composed(weights)
    if any(token.lstrip or token.rstrip for token in added):  # they take any number of spaces with them
        weights[_SPACES] = np.minimum(weights[_SPACES], 0)
    return weights


def _longest(spellings: set[bytes]) -> Weights:
    """For each byte the length of the longest spelling with it."""
    longest = np.ones(256)
    for spelling in sorted(spellings, key=len):
        for byte in set(spelling):
            longest[byte] = len(spelling)
    return longest


def _when_composed(weights: Weights) -> Weights:
    """The weights for texts that are first brought into Unicode's composed form. It leaves U+4000 to U+9FFF as they
    are, which is most of Chinese. Other characters outside of ASCII may become any, and the accents, which are from
    U+0300 to U+037F, may each take a character of ASCII with it."""
    composed = np.zeros(256)
    composed[:0x80] = weights[:0x80]
    composed[0xCC:0xCE] = -weights[:0x80].max()
    composed[0xE4:0xEA] = weights[0xE4:0xEA] + 2 * weights[0x80:0xC0].min()
    return composed


_SPACES = list({byte for n in range(0x3001) if chr(n).isspace() for byte in chr(n).encode()})


def _steps(component: Any, key: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, one after the other."""
    if component is None:
        return []
    spec: dict[str, Any] = json.loads(component.__getstate__())
    return [spec] if spec["type"] != "Sequence" else spec[key]


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether a step leaves no character out, but for what composes."""
    match step["type"]:
        case "ByteLevel" | "Digits" | "NFC" | "Prepend":
            return True
        case "Split" | "Punctuation":
            return bool(step["behavior"] != "Removed")
        case "Metaspace":
            return bool(step["replacement"] == _WORD_MARK)
        case "Replace":
            return (step["pattern"], step["content"]) == ({"String": " "}, _WORD_MARK)
    return False
