"""Texts that are too long are refused before they are tokenised, and none that is not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from octavo.text import Tokenizer, TooManyTokens
from tests.text.conftest import CORPUS, Trained, from_folder, from_gguf

Write = Callable[..., Path]


@pytest.fixture(scope="module", params=["bpe", "nfc", "spm", "no prefix", "metaspace", "stripping", "gaps"])
def tokenizer(
    request: pytest.FixtureRequest, bpe: Trained, spm: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """One of every kind about whose texts something can be said."""
    match request.param:
        case "bpe":
            return from_gguf(bpe.gguf)
        case "nfc":
            return from_gguf(bpe.gguf, pre="qwen2")
        case "spm":
            return from_gguf(spm.gguf)
        case "no prefix":
            return from_gguf(spm.gguf, model="gemma")
    backend = tokenizers.Tokenizer.from_str((spm if request.param == "metaspace" else bpe).backend.to_str())
    if request.param == "gaps":
        backend = tokenizers.Tokenizer.from_str(_without_bytes(backend, "zÃĄ"))
    elif request.param == "metaspace":
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        backend.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    return from_folder(folder)


def _without_bytes(backend: tokenizers.Tokenizer, characters: str) -> str:
    """The tokenizer without the tokens of some bytes, as training without these leaves one."""
    state = json.loads(backend.to_str())
    gone = {piece for piece in state["model"]["vocab"] if set(piece) & set(characters)}
    kept = [piece for piece in state["model"]["vocab"] if piece not in gone]
    state["model"]["vocab"] = {piece: n for n, piece in enumerate(kept)}
    state["model"]["merges"] = [
        pair for pair in state["model"]["merges"] if gone.isdisjoint((*pair, "".join(pair))) and len(pair) == 2
    ]
    return json.dumps(state)


def refused(tokenizer: Tokenizer, text: str, limit: int) -> TooManyTokens | None:
    try:
        tokenizer.encode(text, add_special_tokens=False, limit=limit)
    except TooManyTokens as error:
        return error
    return None


# Spaces, runs, characters that compose with others or become others, the mark that stands for spaces, halves of pairs.
SPACES, COMPOSING = [" ", "\t\n", "\u3000", "▁"], ["e\u0301", "\u212b", "=\u0338", "\u1100\u1161\u11a8"]
pieces = st.sampled_from([*CORPUS, *SPACES, *COMPOSING, "<mask>", "紙", "q"])
texts = st.lists(
    st.tuples(st.text(max_size=20) | pieces | st.just("\ud800"), st.integers(1, 40)).map(lambda pair: pair[0] * pair[1])
).map("".join)


@pytest.mark.hypothesis
@given(text=texts)
def test_what_is_not_too_long_is_never_refused(tokenizer: Tokenizer, text: str) -> None:
    count = len(tokenizer.encode(text, add_special_tokens=False))
    assert refused(tokenizer, text, count) is None
    if count:
        error = refused(tokenizer, text, count - 1)
        assert error is not None
        assert error.count <= count
        assert error.count == count or not error.exact


def test_what_is_far_too_long_is_not_tokenised(tokenizer: Tokenizer) -> None:
    for text in ("the quick brown fox ", "x", "紙を四回折る"):
        error = refused(tokenizer, text * 20_000, 100)
        assert error is not None
        assert not error.exact
        assert error.count > 100


@pytest.mark.parametrize("change", ["unknown", "removing", "replacing", "strip"])
def test_nothing_is_said_where_text_may_vanish(change: str, bpe: Trained, spm: Trained, write_folder: Write) -> None:
    """The unknown characters of a text are one token, or none; spaces may be dropped."""
    trained = spm if change == "unknown" else bpe
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    if change == "unknown":
        backend.model = models.BPE(trained.vocab, trained.merges, unk_token="<unk>", fuse_unk=True)
        text, count = "紙" * 10_000, 2
    elif change == "removing":
        splits = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
        text, count = " " * 10_000, 0
    elif change == "replacing":
        backend.normalizer = normalizers.Replace("q", "")
        text, count = "q" * 10_000, 0
    else:
        backend.normalizer = normalizers.Strip()
        text, count = " " * 10_000, 0
    tokenizer = from_folder(write_folder(backend))
    assert len(tokenizer.encode(text, add_special_tokens=False, limit=count)) == count
