"""Tokenizers from Hugging Face folders, and what every tokenizer promises."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from octavo.errors import CheckpointError, UnsupportedError
from octavo.text import load_tokenizer
from octavo.weights.checkpoint import Checkpoint
from tests.text.conftest import CONTROL, CORPUS, THINK, Trained, from_folder, from_gguf

Write = Callable[..., Path]
TEXTS = [*CORPUS, "", " ", "  two", f"<s>a </s>b<|im_end|>{THINK} c", "\x00 \ufffd 🧵"]


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_a_folder_equals_transformers(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(kind)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if kind == "spm" else {}
    PreTrainedTokenizerFast(tokenizer_object=trained.backend, **names).save_pretrained(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == set(theirs.all_special_ids) | {0, 1, 2}
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        if not text.startswith("<s>"):
            assert ours.encode(text) == theirs.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_a_folder_equals_its_gguf(kind: str, write_folder: Write, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(kind)
    folder, gguf = from_folder(write_folder(trained.backend)), from_gguf(trained.gguf)
    assert folder.vocab_size == gguf.vocab_size
    for text in TEXTS:
        assert folder.encode(text) == gguf.encode(text)
    for token_id in range(-1, gguf.vocab_size + 1):
        assert folder.token_bytes(token_id) == gguf.token_bytes(token_id)


@pytest.mark.hypothesis
@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_token_bytes_join_to_the_text(kind: str, request: pytest.FixtureRequest) -> None:
    """SentencePiece's tokenizers begin every stretch of text between special tokens with a space."""
    tokenizer = from_gguf(request.getfixturevalue(kind).gguf)
    written = ["<unk>", "<s>", "</s>"] if kind == "spm" else [*CONTROL, THINK]
    special = re.compile("(" + "|".join(map(re.escape, written)) + ")")
    plain = st.text(max_size=40).map(lambda text: text.replace("\u2581", ""))

    @given(st.lists(st.one_of(plain, st.sampled_from(written)), max_size=5).map("".join))
    @example("<s>")
    @example(f"a<s></s>b {THINK}<|im_end|> c")
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        stretches = special.split(text)  # plain ones, which may be empty, in turn with special tokens
        if kind == "spm":
            stretches[::2] = [f" {plain}" if plain else "" for plain in stretches[::2]]
        expected = "".join(stretches)
        assert b"".join(map(tokenizer.token_bytes, ids)) == expected.encode()
        shown = expected.removeprefix(" ") if kind == "spm" else expected
        assert tokenizer.decode(ids, skip_special_tokens=False) == shown
        if len(stretches) == 1:
            assert tokenizer.decode(ids) == text

    check()


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_decoder(scheme: Any, spm: Trained, write_folder: Write) -> None:
    backend = tokenizers.Tokenizer.from_str(spm.backend.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = from_folder(write_folder(backend))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == backend.encode(text, add_special_tokens=False).ids
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


def test_token_bytes_and_text_of_single_tokens(bpe: Trained, spm: Trained) -> None:
    tokenizer = from_gguf(spm.gguf)
    assert [tokenizer.token_bytes(3 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token_text(3 + 0x41) == "A"
    assert tokenizer.token_text(3 + 0xE2) == r"bytes:\xe2"
    assert tokenizer.token_text(2) == "</s>"
    byte_level = from_gguf(bpe.gguf)
    single = {byte_level.token_bytes(n) for n in range(byte_level.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single
    assert byte_level.token_bytes(1) == b"<|im_start|>"
    assert byte_level.token_text(10**6) == ""


def test_bos_is_never_added_twice(spm: Trained) -> None:
    tokenizer = from_gguf(spm.gguf)
    assert (
        tokenizer.encode("<s>page")
        == tokenizer.encode("page")
        == [1, *tokenizer.encode("page", add_special_tokens=False)]
    )


def test_a_lone_surrogate_is_read_as_a_replacement_character(bpe: Trained) -> None:
    tokenizer = from_gguf(bpe.gguf)
    text = json.loads(r'"a\ud800b"')
    assert tokenizer.decode(tokenizer.encode(text)) == "a\ufffdb"


def test_stop_tokens_come_from_everywhere(bpe: Trained, spm: Trained, write_folder: Write) -> None:
    # The tokenizer's eos <|im_end|>, and <|endoftext|> as a special token known to end.
    assert from_gguf(bpe.gguf).stop_token_ids == {0, 2}
    configs: dict[str, Any] = {"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [8, 9]}}
    assert from_gguf(bpe.gguf, **configs).stop_token_ids == {0, 2, 7, 8, 9}
    assert from_gguf(bpe.gguf, eot_token_id=20, eom_token_id=21).stop_token_ids == {0, 2, 20, 21}
    assert from_folder(write_folder(bpe.backend), **configs).stop_token_ids == {0, 2, 7, 8, 9}
    # An id beyond the vocabulary, as a careless config has it, and null.
    odd: dict[str, Any] = {"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": 10**6}}
    assert from_gguf(spm.gguf, **odd).stop_token_ids == {2}
    # Ordinary vocabulary that reads like an end token is none.
    types = [*bpe.gguf["tokenizer.ggml.token_type"]]
    types[0] = 1
    assert from_gguf(bpe.gguf, token_type=types).stop_token_ids == {2}


def test_tokenizer_config_overrules_the_post_processor(bpe: Trained, spm: Trained, write_folder: Write) -> None:
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    plain = from_folder(write_folder(spm.backend)).encode("a", add_special_tokens=False)
    for bos, eos, expected in [
        (None, None, [1, *plain]),
        (True, None, [1, *plain]),
        (False, None, plain),
        (False, True, [*plain, 2]),
    ]:
        config = names | {"add_bos_token": bos, "add_eos_token": eos}
        assert from_folder(write_folder(spm.backend, tokenizer_config=config)).encode("a") == expected
    config = {"bos_token": "<|im_start|>", "add_bos_token": True}
    assert from_folder(write_folder(bpe.backend, tokenizer_config=config)).encode("a")[0] == 1


def test_tokens_that_only_the_small_files_name(bpe: Trained, write_folder: Write) -> None:
    size = bpe.backend.get_vocab_size()
    config = {
        "added_tokens_decoder": {
            str(size): {"content": "<|tool|>", "special": True},
            str(size + 1): {"content": "<note>", "special": False},
        },
        "additional_special_tokens": ["<note>"],
        "pad_token": "[not in the vocabulary]",
    }
    folder = write_folder(bpe.backend, tokenizer_config=config, special_tokens_map={"eos_token": THINK})
    tokenizer = from_folder(folder)
    assert tokenizer.encode("<|tool|><note>") == [size, size + 1]
    assert tokenizer.special_ids == {0, 1, 2, size - 1, size, size + 1}
    assert tokenizer.stop_token_ids == {0, 2, size - 1}
    assert tokenizer.vocab_size == size + 2
    config["added_tokens_decoder"] = {str(size + 5): {"content": "<|gap|>"}}
    with pytest.raises(CheckpointError, match=rf"'<\|gap\|>' the id {size + 5}.*{size}"):
        from_folder(write_folder(bpe.backend, tokenizer_config=config))


def test_ids_that_the_model_does_not_know_begin_and_end_nothing(
    spm: Trained, write_folder: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer of 321 tokens over an embedding of 320 rows: the last one can neither be read nor written."""
    folder = write_folder(spm.backend, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    checkpoint = Checkpoint(folder, {"eos_token_id": [2, 10**6]}, {}, {}, None)
    whole = load_tokenizer(checkpoint)
    assert whole.stop_token_ids == {2}
    assert "ids 1000000, which its files name" in caplog.text
    cut = load_tokenizer(checkpoint, vocab_size=1)
    assert cut.stop_token_ids == frozenset()
    assert "the model knows 1 tokens, so ids 1, 2, 1000000" in caplog.text
    assert cut.encode("a") == whole.encode("a", add_special_tokens=False)
    caplog.clear()
    assert load_tokenizer(Checkpoint(folder, {"eos_token_id": 2}, {}, {}, None), vocab_size=10**6).stop_token_ids == {2}
    assert caplog.text == ""


WRONG: dict[str, tuple[str, Any]] = {
    "a number": ("bos_token", 5),
    "a list": ("eos_token", ["</s>"]),
    "an object without content": ("unk_token", {"special": True}),
    "a flag": ("add_bos_token", "yes"),
    "special tokens": ("additional_special_tokens", {"a": 1}),
    "one of them": ("additional_special_tokens", [None]),
    "added tokens": ("added_tokens_decoder", [1]),
    "an id": ("added_tokens_decoder", {"one": {"content": "x"}}),
    "options": ("added_tokens_decoder", {"1": "x"}),
    "no content": ("added_tokens_decoder", {"1": {}}),
    "a template": ("chat_template", 7),
    "templates": ("chat_template", [{"name": "default"}]),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_of_another_type_are_one_line(case: str, spm: Trained, write_folder: Write) -> None:
    key, value = WRONG[case]
    folder = write_folder(spm.backend, tokenizer_config={key: value})
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json: {key}.* is .*, not ") as caught:
        from_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", 1), ("tokens", "abc"), ("token_type", [1.5]), ("merges", [1]), ("bos_token_id", "1"), ("pre", [])],
)
def test_metadata_of_another_type_is_one_line(key: str, value: Any, bpe: Trained) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer.ggml.{key} is .*, of another type"):
        from_gguf(bpe.gguf, **{key: value})


def test_truncation_and_padding_of_training_are_dropped(bpe: Trained, write_folder: Write) -> None:
    trained = tokenizers.Tokenizer.from_str(bpe.backend.to_str())
    trained.enable_truncation(3)
    trained.enable_padding(length=5)
    text = CORPUS[0]
    assert from_folder(write_folder(trained)).encode(text) == bpe.backend.encode(text).ids


def test_where_the_chat_template_lies(bpe: Trained, write_folder: Write) -> None:
    def rendered(folder: Path, **options: Any) -> str | None:
        template = from_folder(folder).chat_template
        return None if template is None else template.render([{"role": "user", "content": "x"}], **options)

    assert rendered(write_folder(bpe.backend)) is None
    assert rendered(write_folder(bpe.backend, chat_template={"chat_template": "processor"})) == "processor"
    assert rendered(write_folder(bpe.backend, tokenizer_config={"chat_template": "config"})) == "config"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = write_folder(bpe.backend, tokenizer_config={"chat_template": named})
    assert rendered(folder) == "plain"
    assert rendered(folder, tools=[{"type": "function"}]) == "tools"
    (folder / "chat_template.jinja").write_text("file")
    assert rendered(folder) == "file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("file with tools")
    assert rendered(folder, tools=[{"type": "function"}]) == "file with tools"


def test_unreadable_files_are_one_line(bpe: Trained, write_folder: Write, tmp_path: Path) -> None:
    def refused(match: str, error: type[Exception] = CheckpointError) -> None:
        with pytest.raises(error, match=match) as caught:
            from_folder(tmp_path)
        assert "\n" not in str(caught.value)

    refused("has no tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    refused("not a readable tokenizer")
    write_folder(bpe.backend)
    (tmp_path / "tokenizer_config.json").write_text("{")
    refused("not valid JSON")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refused("not a JSON object")
    (tmp_path / "tokenizer_config.json").unlink()
    word_piece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    word_piece.decoder = decoders.WordPiece()
    write_folder(word_piece)
    refused("decoder is WordPiece; supported are ByteLevel", UnsupportedError)
