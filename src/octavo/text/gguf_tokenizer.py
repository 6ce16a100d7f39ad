"""A tokenizer from a GGUF file's metadata (`tokenizer.ggml.*`), built as the equal `tokenizers` pipeline.

A GGUF file holds the vocabulary, token types, merges or scores, and a *name* for the rule that splits text before the
merges (`tokenizer.ggml.pre`). The rules behind the names are those of the original models' tokenizer.json files and of
llama.cpp, which coined the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from octavo.errors import CheckpointError, UnsupportedError
from octavo.text.spec import Pieces, TokenizerSpec


class _Type(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class _Split:
    """One `tokenizer.ggml.pre`: patterns applied in turn, each cutting its matches out of what the ones before left.

    `whole_words`: a word that is in the vocabulary is one token, whatever the merges say. `add_bos`: where the file
    does not say. `nfc`: the original tokenizer composes Unicode first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _modern(digits: str) -> str:
    """The pattern that Llama 3 and Qwen 2 share but for how many digits make a word."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"


def _cased(contraction: str, digits: str) -> str:
    """The pattern that o200k and Tekken share: words also end where lower case turns to upper case."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = f"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"


_LLAMA3 = _modern(r"\p{N}{1,3}")
_SPLITS: dict[str, _Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "a.x-4.0", "mellum", "trillion"), _Split((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _Split((r"\p{N}", _GPT2))),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"),
        _Split((_LLAMA3,), whole_words=True, add_bos=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _Split((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Split((_modern(r"\p{N}"),), nfc=True)),
    "tekken": _Split((_cased("", r"\p{N}"),), whole_words=True, add_bos=True),
    "gpt-4o": _Split((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),)),
    "deepseek-coder": _Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "default": _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """Raises CheckpointError for a file without a usable vocabulary, UnsupportedError for a kind not built here."""
    _check_types(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    if kind is None or not tokens:
        raise CheckpointError("The GGUF file holds no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens).")
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [_Type.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"The GGUF file has {len(tokens)} tokens, but {len(types)} token types.")
    # Unused tokens only pad the vocabulary: no text encodes to them and they stand for no text.
    vocabulary = {token: n for n, token in enumerate(tokens) if token and types[n] != _Type.UNUSED}
    add_bos, default_ids = True, {"bos": 1, "eos": 2, "unknown": 0}
    if kind == "gpt2":
        split = _split(metadata)
        backend = _byte_level(vocabulary, metadata.get("tokenizer.ggml.merges") or [], split)
        add_bos, default_ids = split.add_bos, {}
    elif kind in ("llama", "gemma"):
        scores = metadata.get("tokenizer.ggml.scores") or []
        if len(scores) != len(tokens):
            raise CheckpointError(f"The GGUF file has {len(tokens)} tokens, but {len(scores)} scores.")
        prefix_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", kind == "llama"))
        backend = _sentencepiece(vocabulary, types, scores, prefix_space=prefix_space)
    else:
        raise UnsupportedError(
            f"The GGUF file's tokenizer is of kind {kind!r}; supported are 'gpt2' (byte-level BPE), "
            "'llama' and 'gemma' (SentencePiece BPE)."
        )
    backend.add_tokens(
        [
            AddedToken(token, special=types[n] != _Type.USER_DEFINED, normalized=False)
            for token, n in vocabulary.items()
            if types[n] in (_Type.CONTROL, _Type.UNKNOWN, _Type.USER_DEFINED)
        ]
    )

    def named(key: str) -> int | None:
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id", default_ids.get(key))
        return token_id if token_id is not None and 0 <= token_id < len(tokens) else None

    bos, eos = named("bos"), named("eos")
    ids = {"bos_token": bos, "eos_token": eos, "unk_token": named("unknown"), "pad_token": named("padding")}
    wants_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    wants_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    return TokenizerSpec(
        backend=backend,
        pieces=Pieces.of(backend.decoder),
        vocab_size=len(tokens),
        special_tokens={name: tokens[n] for name, n in ids.items() if n is not None},
        prefix_ids=(bos,) if wants_bos and bos is not None else (),
        suffix_ids=(eos,) if wants_eos and eos is not None else (),
        end_ids=frozenset(n for n in (eos, named("eot"), named("eom")) if n is not None),
        chat_templates=_chat_templates(metadata),
    )


_LISTS: dict[str, tuple[type, ...]] = {"tokens": (str,), "token_type": (int,), "scores": (float,), "merges": (str,)}
_SINGLE: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "pre": (str,),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), (bool,)),
    **dict.fromkeys((f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")), (int,)),
}


def _check_types(metadata: Mapping[str, Any]) -> None:
    """Refuse values of other types than the format's definition gives them."""
    wrong = [key for key, types in _SINGLE.items() if not _is(metadata.get(f"tokenizer.ggml.{key}"), types)]
    for key, types in _LISTS.items():
        values = metadata.get(f"tokenizer.ggml.{key}")
        # A list in a GGUF file has elements of one type.
        if values is not None and not (isinstance(values, list) and all(_is(value, types) for value in values[:1])):
            wrong.append(key)
    templates = [key for key in metadata if key.startswith("tokenizer.chat_template") and key != _NAMED_TEMPLATES]
    for key in [f"tokenizer.ggml.{key}" for key in wrong] + [k for k in templates if not _is(metadata[k], (str,))]:
        raise CheckpointError(f"The GGUF file's {key} is {metadata[key]!r:.80}, of another type than it must be.")


_NAMED_TEMPLATES = "tokenizer.chat_templates"


def _is(value: Any, types: tuple[type, ...]) -> bool:
    return value is None or type(value) in types


def _split(metadata: Mapping[str, Any]) -> _Split:
    # Files from before the key existed have none; "default" is what they have always been read with.
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _SPLITS:
        raise UnsupportedError(
            f"The GGUF file's pre-tokenizer is {name!r}; supported are {', '.join(sorted(_SPLITS))}."
        )
    return _SPLITS[name]


def _bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocabulary, list(merges), **options)
    except Exception as error:  # the Rust side raises no narrower type
        raise CheckpointError(f"The GGUF file's tokenizer is inconsistent: {error}") from error


def _byte_level(vocabulary: dict[str, int], merges: Iterable[str], split: _Split) -> tokenizers.Tokenizer:
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise CheckpointError("The GGUF file's tokenizer.ggml.merges is missing or not made of pairs.")
    backend = tokenizers.Tokenizer(_bpe(vocabulary, pairs, ignore_merges=split.whole_words))  # type: ignore[arg-type]
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    vocabulary: dict[str, int], types: Sequence[int], scores: Sequence[float], *, prefix_space: bool
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE joins the neighbours whose union scores best. As ranked merges that is: every way to cut a
    piece into two pieces, best score first.

    Every stretch of text between special tokens gets the space prefix, as the models of this kind were trained.
    """
    normal = {token: n for token, n in vocabulary.items() if types[n] == _Type.NORMAL}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(normal, key=lambda token: -scores[normal[token]])
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    unknown = next((token for token, n in vocabulary.items() if types[n] == _Type.UNKNOWN), None)
    backend = tokenizers.Tokenizer(_bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    escape = normalizers.Replace(" ", "\u2581")
    strip = []
    backend.normalizer = escape
    if prefix_space:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), escape])
        strip = [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    if default := metadata.get("tokenizer.chat_template"):
        templates["default"] = default
    for name in metadata.get(_NAMED_TEMPLATES) or []:
        if source := metadata.get(f"tokenizer.chat_template.{name}"):
            templates[name] = source
    return templates
