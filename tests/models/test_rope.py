"""Rotary frequencies are transformers', for every scaling and both ways of writing it."""

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.errors import CheckpointError, OctavoError, UnsupportedError
from octavo.graph.ops import Rope
from octavo.models.rope import make_rope, rope_parameters
from octavo.models.settings import Settings

HEAD_DIM, MAX_POSITIONS = 64, 4096


def octavo_rope(parameters: dict[str, Any]) -> Rope:
    return make_rope(Settings(parameters), head_dim=HEAD_DIM, theta=10_000.0, max_positions=MAX_POSITIONS)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 512,
        },
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "truncate": False},
        {"rope_type": "yarn", "factor": 16.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    ],
    ids=lambda parameters: "-".join(str(value) for value in parameters.values()),
)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_scalings(parameters: dict[str, Any], theta: float) -> None:
    parameters = parameters | {"rope_theta": theta}
    config = LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters=dict(parameters),
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    found = octavo_rope(parameters)
    np.testing.assert_allclose(found.frequencies, frequencies.numpy(), rtol=1e-6)
    assert found.magnitude == pytest.approx(magnitude)


def test_divisors_of_a_gguf_file_say_what_llama3_says() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    plain, scaled = octavo_rope({}), octavo_rope(llama3)
    factors = (np.array(plain.frequencies) / scaled.frequencies).tolist()
    assert octavo_rope({"rope_type": "factors", "factors": factors}).frequencies == pytest.approx(scaled.frequencies)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None},
        {"rope_scaling": {"type": "linear", "factor": 2}},
    ],
    ids=["transformers-5", "transformers-4", "older"],
)
def test_every_spelling_is_read(config: dict[str, Any]) -> None:
    found = octavo_rope_of(config)
    assert found.frequencies == pytest.approx([frequency / 2 for frequency in octavo_rope({}).frequencies])


def octavo_rope_of(config: dict[str, Any]) -> Rope:
    parameters = rope_parameters(Settings(config))
    return make_rope(parameters, head_dim=HEAD_DIM, theta=10_000.0, max_positions=MAX_POSITIONS)


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        (
            {"rope_type": "dynamic", "factor": 2.0},
            UnsupportedError,
            "'dynamic' is not supported .it makes cached keys",
        ),
        ({"rope_type": "longrope"}, UnsupportedError, "'longrope' is not supported .it makes cached keys"),
        ({"rope_type": "mrope"}, UnsupportedError, "'mrope' is not supported .*supported: default, linear"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        ({"rope_type": "linear"}, CheckpointError, "factor is missing"),
        ({"rope_type": "linear", "factor": -1.0}, CheckpointError, "factor is -1.0, not a positive number"),
        ({"rope_type": "factors", "factors": [1.0]}, CheckpointError, "32 positive numbers"),
    ],
)
def test_what_cannot_be_is_named(parameters: dict[str, Any], error: type[OctavoError], words: str) -> None:
    with pytest.raises(error, match=words):
        octavo_rope(parameters)
