"""Streamed equals not streamed, over any ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text import Detokenizer, Tokenizer
from tests.text.conftest import CORPUS, Trained, from_gguf

# Beyond both vocabularies too, for ids that a model's padded embedding has and its tokenizer lacks.
IDS = st.lists(st.one_of(st.integers(0, 760), st.integers(0, 260)), max_size=30)


@pytest.fixture(scope="module", params=["bpe", "spm"])
def trained(request: pytest.FixtureRequest) -> Trained:
    trained: Trained = request.getfixturevalue(request.param)
    return trained


@pytest.fixture(scope="module")
def tokenizer(trained: Trained) -> Tokenizer:
    return from_gguf(trained.gguf)


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@pytest.mark.hypothesis
def test_the_pieces_join_to_the_decoded_whole(tokenizer: Tokenizer) -> None:
    @given(IDS, st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        pieces = stream(Detokenizer(tokenizer, (), skip), ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)

    check()


@pytest.mark.hypothesis
def test_a_prompt_is_gone_on_from(tokenizer: Tokenizer) -> None:
    @given(IDS, IDS, st.booleans())
    def check(prompt: list[int], ids: list[int], skip: bool) -> None:
        prompt_detokenizer = Detokenizer(tokenizer, (), skip)
        before = "".join(map(prompt_detokenizer.push, prompt))
        after = "".join(stream(Detokenizer(tokenizer, prompt, skip), ids))
        assert before + after == tokenizer.decode(prompt + ids, skip_special_tokens=skip)

    check()


def test_no_piece_ends_in_half_a_character(tokenizer: Tokenizer) -> None:
    for text in CORPUS:
        detokenizer = Detokenizer(tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = [detokenizer.push(n) for n in ids]
        assert "".join(pieces) == text
        assert detokenizer.flush() == ""


def test_an_unfinished_character_is_flushed_as_one_replacement(bpe: Trained) -> None:
    tokenizer = from_gguf(bpe.gguf)
    ids = tokenizer.encode("🧵")  # not in the corpus: several tokens
    detokenizer = Detokenizer(tokenizer)
    assert {detokenizer.push(n) for n in ids[:-1]} == {""}
    assert detokenizer.flush() == "\ufffd"


def test_the_leading_space_is_the_tokenizers_only_at_the_start_of_a_text(spm: Trained) -> None:
    tokenizer = from_gguf(spm.gguf)
    (page,) = tokenizer.encode("page", add_special_tokens=False)
    assert tokenizer.token_bytes(page) == b" page"
    assert Detokenizer(tokenizer).push(page) == "page"
    assert Detokenizer(tokenizer, tokenizer.encode("The")).push(page) == " page"
    # Nothing but a bos token before it: still the start.
    assert Detokenizer(tokenizer, [1]).push(page) == "page"


@pytest.mark.hypothesis
def test_decode_equals_hugging_face(trained: Trained, tokenizer: Tokenizer) -> None:
    @given(IDS, st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        theirs = trained.backend.decode(ids, skip_special_tokens=skip)
        # Their byte fallback gives up on a whole run of byte tokens when one of them is stray.
        if trained.gguf["tokenizer.ggml.model"] == "gpt2" or "\ufffd" not in theirs:
            assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs

    check()
