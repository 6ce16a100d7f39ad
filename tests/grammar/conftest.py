"""A model's tokens for grammars."""

from pathlib import Path

import pytest

from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(tiny_model))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return tokenizer.vocabulary(tokenizer.vocab_size)
