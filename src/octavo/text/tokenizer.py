"""Text to token ids and back, with Hugging Face's semantics, on the `tokenizers` library."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import CheckpointError
from octavo.grammar.vocabulary import EDGE, Vocabulary
from octavo.text.control import ControlTokens
from octavo.text.encoding import TooManyTokens, encoded
from octavo.text.folder_tokenizer import read_folder_tokenizer
from octavo.text.gguf_tokenizer import read_gguf_tokenizer
from octavo.text.least import Weights, byte_weights, least_tokens
from octavo.text.spec import TokenizerSpec
from octavo.text.template import ChatTemplate
from octavo.text.written import Written

if TYPE_CHECKING:
    from octavo.weights.checkpoint import Checkpoint

# Special tokens that end a turn or a document in the families' published models. Quantised and converted checkpoints
# often lose the list in generation_config.json and keep one eos; without these a chat would run on into a dialogue
# with itself. Only a token the vocabulary marks as special counts: the same text in ordinary vocabulary does not.
_END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
OTHER_TEMPLATES = 16
"""Chat templates beside the model's that are kept compiled."""

log = logging.getLogger(__name__)


def load_tokenizer(checkpoint: Checkpoint, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a model folder (tokenizer.json) or GGUF file (its metadata).

    Args:
        checkpoint: the model.
        vocab_size: ids that the model knows, where it is to be served: tokens beyond them, which it can neither read
            nor write, begin and end nothing. A warning names them.

    Raises CheckpointError for missing or inconsistent files, UnsupportedError for kinds not implemented.
    """
    if checkpoint.gguf_metadata is not None:
        spec = read_gguf_tokenizer(checkpoint.gguf_metadata)
    else:
        spec = read_folder_tokenizer(checkpoint.path)
    configs = (checkpoint.generation_config, checkpoint.config)
    end_ids = frozenset(n for config in configs for n in _ids(checkpoint.path, config.get("eos_token_id")))
    tokenizer = Tokenizer(spec, end_ids=end_ids, known=vocab_size)
    if tokenizer.unknown_ids:
        known = tokenizer.vocab_size if vocab_size is None else min(vocab_size, tokenizer.vocab_size)
        log.warning(
            "%s: the model knows %d tokens, so ids %s, which its files name as begin or end, are not used",
            checkpoint.path,
            known,
            ", ".join(map(str, sorted(tokenizer.unknown_ids)[:10])),
        )
    return tokenizer


class Tokenizer:
    """`vocab_size` counts ids, used or not: every id lies in `range(vocab_size)`. `special_ids` are the tokens that
    decoding leaves out by default. `stop_token_ids` end a generation: the eos of the tokenizer, of the generation
    config and of the config, and the special tokens that are known to end a turn. `unknown_ids` would be among them, or
    around every text, if the model knew them. `chat_template` is None for a model without one."""

    def __init__(self, spec: TokenizerSpec, *, end_ids: frozenset[int] = frozenset(), known: int | None = None) -> None:
        """`end_ids` are further ends, from the model's configs; `known` is the number of ids that the model has."""
        known = spec.vocab_size if known is None else min(known, spec.vocab_size)
        self._spec = spec
        self._backend = spec.backend
        self._pieces = spec.pieces
        self._prefix = [n for n in spec.prefix_ids if n < known]
        self._suffix = [n for n in spec.suffix_ids if n < known]
        self._added = {n: token.content for n, token in spec.backend.get_added_tokens_decoder().items()}
        self._bytes: dict[int, bytes] = {}
        self.vocab_size = spec.vocab_size
        self.special_ids = frozenset(n for n, token in spec.backend.get_added_tokens_decoder().items() if token.special)
        known_ends = {n for n in self.special_ids if self._added[n] in _END_TOKENS}
        ends = spec.end_ids | end_ids | known_ends
        self.stop_token_ids = frozenset(n for n in ends if 0 <= n < known)
        named = ends.union(spec.prefix_ids, spec.suffix_ids)
        self.unknown_ids = frozenset(n for n in named if not 0 <= n < known)
        self.strips_space = spec.pieces.strip_space
        self.chat_template = ChatTemplate(spec.chat_templates, spec.special_tokens) if spec.chat_templates else None
        self.template_of = lru_cache(OTHER_TEMPLATES)(self._template_of)

    def _template_of(self, source: str) -> ChatTemplate:
        """Another chat template, with this model's special tokens."""
        return ChatTemplate({"default": source}, self._spec.special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True, limit: int | None = None) -> list[int]:
        """Special tokens written out in `text` are recognised. With `add_special_tokens` the bos and eos this model
        wants are added, but no bos before a text that brings its own. A rendered chat template is complete: encode
        it with `add_special_tokens=False`.

        Raises TooManyTokens: there are more than `limit`. Mostly that is known without tokenising, and always before
        the ids become Python's, which takes long for millions.
        """
        self._refuse_longer(text, limit)
        ids = encoded(self._backend, text, limit).ids
        return self._complete(ids) if add_special_tokens else ids

    def spellings(self, word: str) -> list[list[int]]:
        """The different ways to write a word: at the beginning of a text, after a blank, and right after other text."""
        bare = word.lstrip() or word
        ways = [self.encode(text, add_special_tokens=False) for text in (bare, f" {bare}")]
        ways.append(self.encode_within(bare))
        return [list(way) for way in dict.fromkeys(map(tuple, ways)) if way]

    def encode_within(self, text: str) -> list[int]:
        """A text as it is written right after another one, where nothing is added before it."""
        ids = self.encode(EDGE + text, add_special_tokens=False)
        if ids[: len(self._edge)] == self._edge:
            return ids[len(self._edge) :]
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def _edge(self) -> list[int]:
        return self.encode(EDGE, add_special_tokens=False)

    def encode_rendered(
        self, text: Written, *, add_special_tokens: bool = False, limit: int | None = None
    ) -> list[int]:
        """The same for what a chat template wrote around a client's messages: only what it wrote itself is recognised
        as special tokens, and what the messages say is text. Raises TooManyTokens."""
        self._refuse_longer(text, limit)
        ids = self._control_tokens.encode(text, limit)
        return self._complete(ids) if add_special_tokens else ids

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self._backend)

    def _refuse_longer(self, text: str, limit: int | None) -> None:
        if limit is not None and (least := self._least_tokens(text, limit)) > limit:
            raise TooManyTokens(least, exact=False)

    def _least_tokens(self, text: str, limit: int) -> int:
        """A lower bound of the tokens of a text, reckoned only if it may be above the limit."""
        if len(text) <= limit // 4 or self._byte_weights is None:  # a character has four bytes at most
            return 0
        return least_tokens(self._byte_weights, text)

    @cached_property
    def _byte_weights(self) -> Weights | None:
        return byte_weights(self._spec)

    def _complete(self, ids: list[int]) -> list[int]:
        has_prefix = ids[: len(self._prefix)] == self._prefix
        return ids + self._suffix if has_prefix else self._prefix + ids + self._suffix

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the tokens' bytes; U+FFFD stands for what is not UTF-8.

        This is Hugging Face's decoding without `clean_up_tokenization_spaces`, which would change text that was
        already streamed. One more difference: SentencePiece byte tokens are joined with their neighbours before they
        are read as UTF-8, so one stray byte does not spoil the characters beside it.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        data = bytearray()
        for n in ids:  # no join: one of a million pieces lets nothing else run
            if n not in skipped:
                data += self.token_bytes(n)
        if self.strips_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes one token contributes to a text, which need not be whole characters. A special token
        contributes its own text; an id without a token contributes nothing."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._spell(token_id)
        return data

    def _spell(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""
        added = self._added.get(token_id)
        if added is not None and self._pieces.byte_level:
            return added.encode()
        piece = self._backend.id_to_token(token_id)
        return b"" if piece is None else self._pieces.to_bytes(piece)

    @cached_property
    def special_texts(self) -> dict[str, int]:
        """Special tokens by their texts."""
        return {self._added[n]: n for n in self.special_ids}

    def vocabulary(self, size: int) -> Vocabulary:
        """The tokens for grammars, of a model that knows ids below `size`. Takes a second for large vocabularies."""
        return Vocabulary(
            tokens=[self.token_bytes(n) for n in range(size)],
            special=sorted(n for n in self.special_ids if n < size),
            ends=sorted(n for n in self.stop_token_ids if n < size),
            encoder=self._backend.to_str(),
        )

    def token_text(self, token_id: int) -> str:
        """A token as the OpenAI API shows it in logprobs: its text, or `bytes:\\xe2\\x82` for bytes that are not whole
        characters, so that different tokens stay different."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _ids(path: Path, value: Any) -> list[int]:
    """`eos_token_id` is an id, a list of ids, or null."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(n) is int for n in ids):
        raise CheckpointError(f"{path}: eos_token_id is {value!r:.80}, neither an id nor a list of ids")
    return ids
