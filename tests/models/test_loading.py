"""From files to an engine: what is said on the way, and what is refused before weights are read."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.engine.config import EngineConfig
from octavo.engine.loader import load_engine
from octavo.errors import CheckpointError
from octavo.models import build, read_sizes
from tests.models import oracle
from tests.tiny import write_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


def load(folder: Path, backend: str = "reference") -> None:
    load_engine(EngineConfig(model=str(folder), backend=backend))


def add_weights(folder: Path, **weights: Any) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | weights, path)


def test_a_whole_model_loads_without_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    add_weights(
        folder,
        **{
            "lm_head.weight": weights["model.embed_tokens.weight"],
            "model.layers.0.self_attn.rotary_emb.inv_freq": weights["model.norm.weight"],
        },
    )
    with caplog.at_level(logging.INFO):
        load(folder)
    assert caplog.messages == []


def test_weights_that_nothing_reads_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    add_weights(folder, **{f"model.layers.{layer}.self_attn.sinks": norm for layer in range(6)})
    load(folder)
    assert caplog.messages == [
        f"{folder}: 6 of 26 weights are not used: model.layers.0.self_attn.sinks, model.layers.1.self_attn.sinks, "
        "model.layers.2.self_attn.sinks, model.layers.3.self_attn.sinks and 2 more"
    ]


def test_a_head_that_the_config_denies_is_used_with_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    add_weights(folder, **{"lm_head.weight": weights["model.embed_tokens.weight"] * 2})
    load(folder)
    [message] = caplog.messages
    assert message.startswith(f"{folder}: config.json says tie_word_embeddings is true, but lm_head.weight differs")


@pytest.mark.parametrize("name", oracle.CASES)
def test_sizes_are_known_before_the_graph(name: str) -> None:
    config = oracle.make(name).config.to_dict()
    sizes, model = read_sizes(config), build(config)
    assert (sizes.vocab_size, sizes.max_position_embeddings) == (model.vocab_size, model.max_position_embeddings)
    assert sizes.vocab_size == 83
    assert sizes.max_position_embeddings == 512


def test_more_layers_than_any_model_has_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 100_000}))
    with pytest.raises(
        CheckpointError, match=r"config.json: num_hidden_layers is 100000, not a whole number from 1 to"
    ):
        load(folder)


@pytest.mark.timeout(60)
def test_a_deep_model_is_built_in_time() -> None:
    """A builder that looks through all earlier nodes for each takes minutes."""
    config = oracle.SIZES | {"model_type": "llama", "num_hidden_layers": 4096}
    assert len(build(config).graph.attention_layers()) == 4096


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_weights_that_are_not_finite_are_refused(backend: str, name: str, value: float, folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")[name].copy()
    weight.reshape(-1)[-1] = value
    add_weights(folder, **{name: weight})
    with pytest.raises(CheckpointError, match=f"^{folder}: weight {name} .* has values that are not finite"):
        load(folder, backend)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_weights_of_another_shape_are_said_with_the_model_that_has_them(backend: str, folder: Path) -> None:
    add_weights(folder, **{"model.norm.weight": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=f"^{folder}: 1 of .* model.norm.weight is \\[3\\] instead of"):
        load(folder, backend)
