"""Control tokens: which they are, and how a text is encoded so that only those a chat template wrote become tokens.

Mostly a prompt is encoded as always. One that has the text of control tokens where the template wrote none is encoded
by a tokenizer that differs in one thing: control tokens have secret names. Where the template wrote one, the text gets
that name; what is left of the old names is ordinary text, split and merged like any other.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from octavo.text.encoding import encoded
from octavo.text.written import Written

# Vocabularies have text among their added tokens, too: spaces, single letters and words, and Gemma's HTML tags.
_HTML = (
    "table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|br|ul|ol|li|a|div|span"
)
_TEXT = re.compile(rf"[\s\u2581]*|.|\w+|</?(?:{_HTML})>", re.DOTALL)
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def control_tokens(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Ids of the tokens by which a model is told who speaks, where that ends and what else is no text, by their text.

    They are those that the vocabulary calls special, and most other added ones: DeepSeek's <｜User｜> and Qwen's
    <tool_call> are not called special.
    """
    added = backend.get_added_tokens_decoder()
    return {
        token.content: n
        for n, token in added.items()
        if token.content and (token.special or not _TEXT.fullmatch(token.content))
    }


class ControlTokens:
    """Encodes what a chat template wrote."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._ids = control_tokens(backend)
        self._all = frozenset(self._ids.values())

    def encode(self, text: Written, limit: int | None = None) -> list[int]:
        """Ids in which the control tokens are those that lie whole in what the template wrote.

        Raises TooManyTokens: there are more than `limit`.
        """
        wanted = [match for start, end in text.spans for match in self._pattern.finditer(text, start, end)]
        if _places(wanted) == _places(self._pattern.finditer(text)):
            ids = encoded(self._backend, text, limit).ids
            # Some tokenizers find fewer, as they change a text before they look; none may find more.
            if _is_subsequence([n for n in ids if n in self._all], [self._ids[match[0]] for match in wanted]):
                return ids
        return self._encode_apart(text, wanted, limit)

    def _encode_apart(self, text: str, wanted: Iterable[re.Match[str]], limit: int | None) -> list[int]:
        pieces: list[str] = []
        position = 0
        for match in wanted:
            pieces += (text[position : match.start()], self._secret[match[0]])
            position = match.end()
        renamed = "".join((*pieces, text[position:]))
        for tokenizer in (self._apart, self._without_pieces):
            ids = encoded(tokenizer.backend, renamed, limit).ids
            if not any(n in self._all and n not in tokenizer.true_ids for n in ids):
                break
        return [tokenizer.true_ids.get(n, n) for n in ids]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_any_of(self._ids) or "(?!)")

    @cached_property
    def _secret(self) -> dict[str, str]:
        """Names that no client can know."""
        mark = secrets.token_hex(16)
        return {token: f"<{mark}{number:08x}>" for number, token in enumerate(self._ids)}

    @cached_property
    def _apart(self) -> _Renamed:
        """Shares everything with the tokenizer but the added tokens."""
        return self._rename_in(self._backend.model)

    @cached_property
    def _without_pieces(self) -> _Renamed:
        """The same for a model that makes control tokens of text by itself, as they are among its pieces: without them.
        Takes a second."""
        state = json.loads(self._backend.to_str())
        state["added_tokens"], state["post_processor"] = [], None
        state["model"] = _without(state["model"], self._ids)
        return self._rename_in(tokenizers.Tokenizer.from_str(json.dumps(state)).model)

    def _rename_in(self, model: Any) -> _Renamed:
        backend = tokenizers.Tokenizer(model)
        for part in ("normalizer", "pre_tokenizer"):
            if (shared := getattr(self._backend, part)) is not None:
                setattr(backend, part, shared)
        # Added tokens get the ids behind the number of the model's pieces, some of which may be in use.
        pieces = backend.get_vocab(with_added_tokens=False)
        used = max(pieces.values(), default=-1) + 1 - len(pieces)
        mark = secrets.token_hex(16)
        backend.add_tokens([AddedToken(f"<{mark}{n:08x}>", normalized=False) for n in range(used)])
        added = {n: self._rename(token) for n, token in self._backend.get_added_tokens_decoder().items()}
        backend.add_tokens(list(added.values()))
        ids = backend.get_added_tokens_decoder()
        names = {token.content: n for n, token in added.items()}
        return _Renamed(backend, {n: names[token.content] for n, token in ids.items() if token.content in names})

    def _rename(self, token: AddedToken) -> AddedToken:
        if token.content not in self._secret:
            return token
        name = self._secret[token.content]
        return AddedToken(name, normalized=False, lstrip=token.lstrip, rstrip=token.rstrip, special=True)


class _Renamed(NamedTuple):
    """A tokenizer, and the true ids of its added tokens."""

    backend: tokenizers.Tokenizer
    true_ids: dict[int, int]


def _places(matches: Iterable[re.Match[str]]) -> list[tuple[int, int]]:
    return [match.span() for match in matches]


def _is_subsequence(part: Sequence[int], whole: Iterable[int]) -> bool:
    rest = iter(whole)
    return all(n in rest for n in part)


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of the words at a place. It takes common beginnings together: not each of thousands of
    tokens is tried at every < of a text."""
    ends, by_first = False, dict[str, list[str]]()
    for word in words:
        if word:
            by_first.setdefault(word[0], []).append(word[1:])
        else:
            ends = True
    if not by_first:
        return ""
    branches = [re.escape(first) + _any_of(rests) for first, rests in by_first.items()]
    if len(branches) == 1 and not ends:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if ends else ''}"


def _without(model: Mapping[str, Any], tokens: Iterable[str]) -> dict[str, Any]:
    """A tokenizer's model, as its file describes it, that knows no such pieces."""
    kept = {"vocab": model["vocab"]}
    if isinstance(model["vocab"], dict):
        gone = {token for token in tokens if token != model.get("unk_token") and not _BYTE.fullmatch(token)}
        kept["vocab"] = {piece: n for piece, n in model["vocab"].items() if piece not in gone}
        if "merges" in model:
            pairs = [tuple(each.split(" ", 1)) if isinstance(each, str) else tuple(each) for each in model["merges"]]
            kept["merges"] = [pair for pair in pairs if gone.isdisjoint((*pair, "".join(pair)))]
    else:
        # A list, in which every piece has its place: no text has these names.
        gone = set(tokens)
        mark = secrets.token_hex(16)
        kept["vocab"] = [[mark + piece if piece in gone else piece, score] for piece, score in model["vocab"]]
    return {**model, **kept}
