"""Tokenizers built from GGUF metadata against transformers' own classes for the same vocabularies."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from octavo.errors import CheckpointError, UnsupportedError
from tests.text.conftest import CORPUS, THINK, Trained, from_gguf

WORDS = st.sampled_from([word for line in CORPUS for word in line.split(" ")])
TEXT = st.one_of(st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=40))


@pytest.mark.hypothesis
@pytest.mark.parametrize(("pre", "oracle"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)])
def test_byte_level_equals_transformers(bpe: Trained, pre: str, oracle: type[Any]) -> None:
    theirs = oracle(vocab=bpe.vocab, merges=bpe.merges)
    ours = from_gguf(bpe.gguf, pre=pre)

    @given(TEXT)
    def check(text: str) -> None:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)

    check()


@pytest.mark.hypothesis
@pytest.mark.parametrize(("prefix", "oracle"), [(True, LlamaTokenizer), (False, GemmaTokenizer)])
def test_sentencepiece_equals_transformers(spm: Trained, prefix: bool, oracle: type[Any]) -> None:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    theirs = oracle(vocab=spm.vocab, merges=spm.merges, mask_token="<unk>", **names)
    ours = from_gguf(spm.gguf, add_space_prefix=prefix)

    # LlamaTokenizer puts no space before a text that starts with one; SentencePiece and llama.cpp always do.
    @given(TEXT.filter(lambda text: not text.startswith((" ", "▁"))))
    def check(text: str) -> None:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)

    check()


@pytest.mark.hypothesis
def test_sentencepiece_equals_its_definition(spm: Trained) -> None:
    ours = from_gguf(spm.gguf)
    tokens, types = spm.gguf["tokenizer.ggml.tokens"], spm.gguf["tokenizer.ggml.token_type"]
    scores = spm.gguf["tokenizer.ggml.scores"]
    pieces = {token: scores[n] for n, token in enumerate(tokens) if types[n] == 1}

    def by_definition(text: str) -> list[str]:
        """Join the neighbours whose union scores best, leftmost first, until none is a piece; then bytes."""
        symbols = list("▁" + text.replace(" ", "▁")) if text else []
        while joins := [
            (-pieces[left + right], n) for n, (left, right) in enumerate(pairwise(symbols)) if left + right in pieces
        ]:
            _, n = min(joins)
            symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]
        spelled = ([s] if s in pieces else [f"<0x{byte:02X}>" for byte in s.encode()] for s in symbols)
        return [token for group in spelled for token in group]

    @given(st.one_of(TEXT, st.text("aeinst ", max_size=30)))
    def check(text: str) -> None:
        assert [tokens[n] for n in ours.encode(text, add_special_tokens=False)] == by_definition(text)

    check()


# What each rule does to text in which the rules differ; a word here is what merges may join at most.
SPLITS = {
    "gpt-2": ["It", "'s", " 1234", " x", ".", "\n\n ", " HelloWorld", " HE", "'", "LL"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", " x", ".", "\n\n ", " HelloWorld", " HE", "'", "LL"],
    "llama-bpe": ["It", "'s", " ", "123", "4", " x", ".\n\n", " ", " HelloWorld", " HE", "'LL"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", " x", ".\n\n", " ", " HelloWorld", " HE", "'LL"],
    "tekken": ["It", "'s", " ", "1", "2", "3", "4", " x", ".\n\n", " ", " Hello", "World", " HE", "'LL"],
    "gpt-4o": ["It's", " ", "123", "4", " x", ".\n\n", " ", " Hello", "World", " HE'LL"],
    "deepseek-coder": [
        "It", "'", "s", " ", "1", "2", "3", "4", " x", ".", "\n", "\n", " ", " HelloWorld", " HE", "'", "LL"
    ],
    "default": ["It", "'", "s", " ", "123", "4", " x", ".", "\n\n ", " HelloWorld", " HE", "'", "LL"],
}  # fmt: skip


@pytest.mark.parametrize("pre", SPLITS)
def test_splits_of_each_pre_tokenizer(bpe: Trained, pre: str) -> None:
    tokenizer = from_gguf(bpe.gguf, pre=pre)
    text = "It's 1234 x.\n\n  HelloWorld HE'LL"
    pieces = tokenizer._backend.pre_tokenizer.pre_tokenize_str(text)
    words, position = [], 0
    for spelling, _ in pieces:  # the text is ASCII: one character of a spelling is one of the text
        words.append(text[position : position + len(spelling)])
        position += len(spelling)
    assert words == SPLITS[pre]


def test_whole_words_win_over_merges(bpe: Trained) -> None:
    tokens = [*bpe.gguf["tokenizer.ggml.tokens"], "xqzj"]
    grown = bpe.gguf | {"tokenizer.ggml.tokens": tokens}
    types = [*bpe.gguf["tokenizer.ggml.token_type"], 1]
    assert from_gguf(grown, token_type=types, pre="llama-bpe", add_bos_token=False).encode("xqzj") == [len(tokens) - 1]
    assert len(from_gguf(grown, token_type=types, pre="gpt-2").encode("xqzj")) > 1


def test_token_types(bpe: Trained) -> None:
    tokens = [*bpe.gguf["tokenizer.ggml.tokens"], "[PAD]", "page"]
    types = [*bpe.gguf["tokenizer.ggml.token_type"], 5, 5]
    tokenizer = from_gguf(bpe.gguf, tokens=tokens, token_type=types)
    think, padding = tokens.index(THINK), len(tokens) - 2
    # Control and user-defined tokens are found in text; only control tokens are special.
    ids = tokenizer.encode(f"<|im_start|>{THINK}page[PAD]")
    assert ids[:2] == [1, think]
    assert tokenizer.decode(ids) == f"{THINK}page[PAD]"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"<|im_start|>{THINK}page[PAD]"
    assert tokenizer.special_ids == {0, 1, 2}
    # Unused tokens: no text becomes one, and one becomes no text.
    assert max(ids) < padding
    assert tokenizer.decode([padding, padding + 1]) == ""
    assert tokenizer.vocab_size == len(tokens)


def test_bos_and_eos_by_kind(bpe: Trained, spm: Trained) -> None:
    assert from_gguf(bpe.gguf).encode("a")[0] != 1
    assert from_gguf(bpe.gguf, pre="llama-bpe").encode("a")[0] == 1
    assert from_gguf(bpe.gguf, pre="llama-bpe", add_bos_token=False).encode("a")[0] != 1
    assert from_gguf(spm.gguf).encode("a")[0] == 1
    assert from_gguf(spm.gguf, add_bos_token=False).encode("a")[0] != 1
    assert from_gguf(spm.gguf).encode("a")[-1] != 2
    assert from_gguf(spm.gguf, add_eos_token=True).encode("a")[-1] == 2
    assert from_gguf(spm.gguf).encode("a", add_special_tokens=False)[0] != 1
    # SentencePiece's own ids hold where the file is silent.
    silent = {key: value for key, value in spm.gguf.items() if not key.endswith("token_id")}
    assert from_gguf(silent).encode("") == [1]
    assert 2 in from_gguf(silent).stop_token_ids


def test_chat_templates_of_the_file(bpe: Trained) -> None:
    assert from_gguf(bpe.gguf).chat_template is None
    templates = {
        "tokenizer.chat_template": "{{ bos_token }}plain",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "with tools",
    }
    template = from_gguf(bpe.gguf | templates).chat_template
    assert template is not None
    assert template.render([{"role": "user"}]) == "<|im_start|>plain"
    assert template.render([{"role": "user"}], tools=[{"type": "function"}]) == "with tools"


def test_unsupported_kinds_name_what_is_supported(bpe: Trained) -> None:
    with pytest.raises(UnsupportedError, match=r"'falcon-9'.*gpt-2.*llama-bpe.*qwen2.*smollm"):
        from_gguf(bpe.gguf, pre="falcon-9")
    with pytest.raises(UnsupportedError, match=r"'t5'.*gpt2.*llama"):
        from_gguf(bpe.gguf, model="t5")


@pytest.mark.parametrize(
    "broken",
    [
        {"model": None},
        {"tokens": []},
        {"token_type": [1, 2, 3]},
        {"merges": None},
        {"merges": ["joined"]},
        {"merges": ["no such"]},
        {"model": "llama", "scores": [0.0]},
    ],
    ids=str,
)
def test_an_inconsistent_file_is_one_line(bpe: Trained, broken: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_gguf(bpe.gguf, **broken)
    assert "\n" not in str(caught.value)
