"""Small tokenizers, trained here: a byte-level BPE and a SentencePiece-like BPE, each also as GGUF metadata."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.text import Tokenizer, load_tokenizer
from octavo.weights.checkpoint import Checkpoint

CORPUS = (
    """
The sheet is folded into sixteen pages, and every page holds sixteen tokens. What is the capital of France? It's Paris.
They'll say that we've read 1234567890 books, and that I'm the one who didn't. HelloWorld, camelCase and snake_case!
def fold(sheet: list[int], times: int = 4) -> int:
    for _ in range(times):
        sheet = [(a + b) % 256 for a, b in zip(sheet[::2], sheet[1::2])]
    return sheet[0]
Der Bogen wird viermal gefaltet; größere Bücher heißen Folianten. Où est la bibliothèque ? À côté de l'école.
Лист бумаги сложен вчетверо. 紙を四回折ると十六ページになります。 한 장을 네 번 접는다. 😀 👩‍👩‍👧 🇫🇷 €100, ½, Ⅻ
        indented\t\ttabs   and   runs of    spaces\r\nand line ends\n\n\nof both kinds
""".strip().split("\n")
    * 3
)

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = "<think>"


@dataclass(frozen=True)
class Trained:
    """A backend as Hugging Face would publish it, its merges, and what a converter would write to a GGUF file."""

    backend: tokenizers.Tokenizer
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    gguf: dict[str, Any]


def _vocab_and_merges(backend: tokenizers.Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="session")
def bpe() -> Trained:
    """Byte-level BPE with GPT-2's splitting, ChatML's control tokens and one user-defined token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(THINK, normalized=False)])
    vocab, merges = _vocab_and_merges(backend)
    tokens = [*sorted(vocab, key=lambda token: vocab[token]), THINK]
    gguf = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(vocab) - len(CONTROL)) + [4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return Trained(backend, vocab, merges, gguf)


@pytest.fixture(scope="session")
def spm() -> Trained:
    """SentencePiece-like BPE: byte fallback, a space before every text, scores that fall with the rank."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    latin = [line for line in CORPUS if line.isascii()]  # other scripts are left to byte fallback
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    trained.train_from_iterator(latin, trainer)
    ids, merges = _vocab_and_merges(trained)
    tokens = sorted(ids, key=lambda token: ids[token])
    merged = list(dict.fromkeys(left + right for left, right in merges))
    letters = [token for token in tokens if token not in special and token not in merged]
    tokens = [*special, *merged, *letters]
    vocab = {token: n for n, token in enumerate(tokens)}

    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special[:3]])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    pieces = len(merged) + len(letters)
    gguf = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * pieces,
        "tokenizer.ggml.scores": [0.0] * len(special) + [-float(rank) for rank in range(pieces)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return Trained(backend, vocab, merges, gguf)


def from_gguf(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    """`changes`: keys below `tokenizer.ggml.`, and `config`/`generation_config`."""
    config = changes.pop("config", {})
    generation_config = changes.pop("generation_config", {})
    metadata = metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return load_tokenizer(Checkpoint(Path("model.gguf"), config, generation_config, {}, metadata))


def from_folder(folder: Path, **configs: dict[str, Any]) -> Tokenizer:
    config, generation_config = configs.get("config", {}), configs.get("generation_config", {})
    return load_tokenizer(Checkpoint(folder, config, generation_config, {}, None))


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tokenizer folder; each keyword is the content of one file, its name with `_` for `.`."""

    def write(backend: tokenizers.Tokenizer, **files: Any) -> Path:
        backend.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write
