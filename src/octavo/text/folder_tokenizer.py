"""A tokenizer from a Hugging Face folder: tokenizer.json and the small files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from octavo.errors import CheckpointError
from octavo.text.spec import Pieces, TokenizerSpec
from octavo.weights.json_file import read_json

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

    config = _Config(folder / "tokenizer_config.json")
    named = _Config(folder / "special_tokens_map.json")
    special_tokens = {}
    for name in _NAMES:
        if (token := config.token(name) or named.token(name)) is not None:
            special_tokens[name] = token
    _add_tokens(backend, config, special_tokens)

    def ids(name: str) -> tuple[int, ...]:
        token_id = backend.token_to_id(special_tokens.get(name, ""))
        return () if token_id is None else (token_id,)

    prefix, suffix = _around(backend)
    # Where tokenizer_config.json speaks of it, it overrules the post-processor in tokenizer.json, as it does in
    # the tokenizer classes that read the key.
    if (add_bos := config.flag("add_bos_token")) is not None:
        prefix = ids("bos_token") if add_bos else ()
    if (add_eos := config.flag("add_eos_token")) is not None:
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


class _Config:
    """One of the small files, which may be absent, read as the types its values must have."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = read_json(path) if path.is_file() else {}

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {key} is {value!r:.80}, not {wanted}")

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def token(self, key: str) -> str | None:
        """The text of a token, which is written by itself or with options; "" is none."""
        value = self.get(key)
        return None if value is None else self._content(key, value) or None

    def tokens(self, key: str) -> list[str]:
        values = self.get(key) or []
        if not isinstance(values, list):
            raise self.wrong(key, values, "a list of tokens")
        return [self._content(key, value) for value in values]

    def added_tokens(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Id, text and options of the tokens in `added_tokens_decoder`, by id."""
        key = "added_tokens_decoder"
        values = self.get(key) or {}
        if not isinstance(values, dict):
            raise self.wrong(key, values, "an object")
        tokens = []
        for number, options in values.items():
            if not (number.isascii() and number.isdigit() and len(number) < 10 and isinstance(options, dict)):
                raise self.wrong(key, {number: options}, "an object from ids to tokens")
            tokens.append((int(number), self._content(f"{key}.{number}", options), options))
        return sorted(tokens, key=lambda token: token[0])

    def _content(self, key: str, value: Any) -> str:
        text = value.get("content") if isinstance(value, dict) else value
        # Half of a surrogate pair, which JSON can write, is no character.
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise self.wrong(key, value, "a token: a string, or an object with its content")
        return text


def _add_tokens(backend: tokenizers.Tokenizer, config: _Config, special_tokens: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json declares, or that only it calls special."""
    known = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    special = {*config.tokens("additional_special_tokens"), *special_tokens.values()}
    for token_id, content, options in config.added_tokens():
        is_special = bool(options.get("special")) or content in special
        if known.get(content) in (True, is_special):
            continue
        flags = {key: bool(options.get(key)) for key in ("single_word", "lstrip", "rstrip")}
        normalized = bool(options.get("normalized", not is_special))
        backend.add_tokens([AddedToken(content, special=is_special, normalized=normalized, **flags)])
        if (got := backend.token_to_id(content)) != token_id:
            raise CheckpointError(
                f"tokenizer_config.json gives {content!r:.80} the id {token_id}, but tokenizer.json has it at {got}."
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


def _chat_templates(folder: Path, config: _Config) -> dict[str, str]:
    """Sources by name. Files of their own come before tokenizer_config.json, as transformers has it."""
    templates = {}
    if (path := folder / "chat_template.jinja").is_file():
        templates["default"] = _read_text(path)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_text(path)
    if templates:
        return templates
    for file in (config, _Config(folder / "chat_template.json")):
        match file.get("chat_template"):
            case None:
                continue
            case str(source):
                return {"default": source}
            case [*entries] if all(_is_named_template(entry) for entry in entries):
                return {entry["name"]: entry["template"] for entry in entries}
            case other:
                raise file.wrong("chat_template", other, "a template or a list of templates with names")
    return {}


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
