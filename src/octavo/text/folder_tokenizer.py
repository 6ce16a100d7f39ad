"""A tokenizer from a Hugging Face folder: tokenizer.json and the small files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from octavo.errors import CheckpointError
from octavo.text.spec import Pieces, TokenizerSpec

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_folder_tokenizer(folder: Path) -> TokenizerSpec:
    """Raises CheckpointError for a missing or unreadable file, UnsupportedError for a decoder not known here."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json, which holds the model's tokenizer.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises no narrower type
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error
    # Some files carry the training run's truncation and padding; a server needs every token and no others.
    backend.no_truncation()
    backend.no_padding()

    config = _read_json(folder / "tokenizer_config.json")
    named = _read_json(folder / "special_tokens_map.json")
    special_tokens = {}
    for name in _NAMES:
        if (token := config.get(name) or named.get(name)) is not None:
            special_tokens[name] = _content(token)
    _add_tokens(backend, config, special_tokens)

    def ids(name: str) -> tuple[int, ...]:
        token_id = backend.token_to_id(special_tokens.get(name, ""))
        return () if token_id is None else (token_id,)

    prefix, suffix = _around(backend)
    # Where tokenizer_config.json speaks of it, it overrules the post-processor in tokenizer.json, as it does in
    # the tokenizer classes that read the key.
    if (add_bos := config.get("add_bos_token")) is not None:
        prefix = ids("bos_token") if add_bos else ()
    if (add_eos := config.get("add_eos_token")) is not None:
        suffix = ids("eos_token") if add_eos else ()
    highest_added = max(backend.get_added_tokens_decoder(), default=-1)
    return TokenizerSpec(
        backend=backend,
        pieces=Pieces.of(backend.decoder),
        vocab_size=max(backend.get_vocab_size(), highest_added + 1),
        special_tokens=special_tokens,
        prefix_ids=prefix,
        suffix_ids=suffix,
        end_ids=frozenset(ids("eos_token")),
        chat_templates=_chat_templates(folder, config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not an object.")
    return content


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json declares, or that only it calls special."""
    declared = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    known = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    special = {_content(token) for token in config.get("additional_special_tokens") or []}
    special |= set(special_tokens.values())
    for token_id, options in declared:
        content = options["content"]
        is_special = bool(options.get("special")) or content in special
        if known.get(content) in (True, is_special):
            continue
        flags = {key: bool(options.get(key)) for key in ("single_word", "lstrip", "rstrip")}
        normalized = bool(options.get("normalized", not is_special))
        backend.add_tokens([AddedToken(content, special=is_special, normalized=normalized, **flags)])
        if (got := backend.token_to_id(content)) != int(token_id):
            raise CheckpointError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, but tokenizer.json has it at {got}."
            )
        known[content] = is_special
    # A name for a token the vocabulary lacks is left alone: a new id would lie beyond the model's embedding.
    unmarked = [token for token in special if not known.get(token) and backend.token_to_id(token) is not None]
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in sorted(unmarked)])


def _around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that tokenizer.json's post-processor puts before and after a text."""
    text = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(text) + 1):
        if full[start : start + len(text)] == text:
            return tuple(full[:start]), tuple(full[start + len(text) :])
    raise CheckpointError("tokenizer.json's post-processor changes the text's own tokens.")


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Sources by name. Files of their own come before tokenizer_config.json, as transformers has it."""
    templates = {}
    if (path := folder / "chat_template.jinja").is_file():
        templates["default"] = path.read_text(encoding="utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    if templates:
        return templates
    source = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):
        return {entry["name"]: entry["template"] for entry in source}
    return {} if source is None else {"default": source}
