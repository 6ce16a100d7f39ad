"""What a reader of tokenizer files hands to `Tokenizer`: the backend, and the facts it does not hold itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from octavo.errors import UnsupportedError


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: the printable Latin-1 characters are themselves, and the other
    bytes take the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF_CHARACTER = _byte_alphabet()
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Pieces:
    """How a token's spelling in the vocabulary stands for bytes.

    `byte_level`: each character is one byte (GPT-2's alphabet). Otherwise SentencePiece's way: U+2581 is a space and,
    with `byte_fallback`, `<0x0A>` is one byte. `strip_space`: a text's first space belongs to the tokenizer, which
    puts one before every text it encodes, and is taken off when a text is decoded.
    """

    byte_level: bool
    byte_fallback: bool = False
    strip_space: bool = False

    def to_bytes(self, piece: str) -> bytes:
        """The bytes of an ordinary token. A spelling outside the alphabet stands for itself."""
        if self.byte_level:
            try:
                return bytes([BYTE_OF_CHARACTER[character] for character in piece])
            except KeyError:
                return piece.encode()
        if self.byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()

    @staticmethod
    def of(decoder: Any) -> Pieces:
        """Read off a `tokenizers` decoder; raises UnsupportedError for the kinds no language model here uses."""
        spec: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
        steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
        by_type = {step["type"]: step for step in steps}
        kinds = by_type.keys()
        if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
            return Pieces(byte_level=True)
        replace, strip = by_type.get("Replace"), by_type.get("Strip")
        if (
            replace is not None
            and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}
            and (replace["pattern"], replace["content"]) == ({"String": "\u2581"}, " ")
            and (strip is None or (strip["content"], strip["start"], strip["stop"]) == (" ", 1, 0))
        ):
            return Pieces(False, byte_fallback="ByteFallback" in kinds, strip_space=strip is not None)
        metaspace = by_type.get("Metaspace")
        if metaspace is not None and kinds <= {"Metaspace", "ByteFallback", "Fuse"}:
            strips = metaspace["prepend_scheme"] != "never"
            return Pieces(False, byte_fallback="ByteFallback" in kinds, strip_space=strips)
        raise UnsupportedError(
            f"The tokenizer's decoder is {' + '.join(step['type'] for step in steps)}; supported are ByteLevel and "
            "SentencePiece's (Replace or Metaspace, ByteFallback, Fuse, Strip of one leading space)."
        )


@dataclass(frozen=True)
class TokenizerSpec:
    """`special_tokens` maps bos_token, eos_token, unk_token and pad_token to their text, as far as the model has them.
    `prefix_ids` and `suffix_ids` are put around every text that is encoded with special tokens. `end_ids` are the
    tokens that the tokenizer itself says end a turn. `chat_templates` are Jinja sources by name."""

    backend: tokenizers.Tokenizer
    pieces: Pieces
    vocab_size: int
    special_tokens: Mapping[str, str]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    end_ids: frozenset[int] = frozenset()
    chat_templates: Mapping[str, str] = field(default_factory=dict)
