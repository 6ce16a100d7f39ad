"""Engines of the tiny model that know its tokens, on both backends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.engine.engine import Engine
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.checkpoint import open_checkpoint
from tests.engine.test_determinism import engine_for


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(tiny_model))


@pytest.fixture(scope="module", params=["cpu", "reference"])
def make(request: pytest.FixtureRequest, tiny_model: Path, tokenizer: Tokenizer) -> Callable[..., Engine]:
    if request.param == "cpu":
        pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")

    page_bytes = 2**20 // engine_for(tiny_model, request.param, kv_cache_memory_bytes=2**20).executor.num_pages

    def engine(*, pages: int = 200, **settings: int) -> Engine:
        settings["kv_cache_memory_bytes"] = pages * page_bytes
        made = engine_for(tiny_model, request.param, **settings)
        made.grammars.learn(tokenizer.vocabulary(made.executor.vocab_size))
        return made

    return engine
