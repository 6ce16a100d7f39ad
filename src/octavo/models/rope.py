"""Rotary frequencies and their scalings, from a config to the op."""

from math import ceil, floor, isfinite, log, pi

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedError
from octavo.graph.ops import Rope
from octavo.models.settings import Settings

Float64 = NDArray[np.float64]

SUPPORTED = ("default", "linear", "llama3", "yarn", "factors")


def rope_parameters(config: Settings) -> Settings:
    """Where a config describes its rotary embedding: `rope_parameters`, or `rope_scaling` before transformers 5."""
    return config.section("rope_parameters") or config.section("rope_scaling")


def rope_type(parameters: Settings) -> str:
    """The kind of scaling; old configs call the key "type"."""
    return str(parameters.get("rope_type") or parameters.get("type", "default"))


def make_rope(parameters: Settings, *, head_dim: int, theta: float, max_positions: int) -> Rope:
    """The op that a config's rotary parameters describe.

    Args:
        parameters: `rope_type` and what belongs to it; may be empty.
        head_dim: features of a head, all of which are turned.
        theta: the base, unless the parameters name one.
        max_positions: the model's `max_position_embeddings`.

    Raises:
        UnsupportedError: another kind of scaling, or only a part of the head is turned.
        CheckpointError: a value is missing or cannot be.
    """
    kind = rope_type(parameters)
    if kind not in SUPPORTED:
        why = "it makes cached keys depend on the length of the text" if kind in ("dynamic", "longrope") else "unknown"
        raise UnsupportedError(
            f"{parameters.source}: rope type {kind!r:.80} is not supported ({why}); supported: {', '.join(SUPPORTED)}"
        )
    if parameters.number("partial_rotary_factor", 1.0) != 1.0:
        raise parameters.unsupported("partial_rotary_factor", "only heads that are turned whole are")

    theta = parameters.number("rope_theta", theta)
    if theta <= 1:
        raise parameters.wrong("rope_theta", "above 1")
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    magnitude = 1.0
    if kind == "linear":
        frequencies = frequencies / parameters.number("factor")
    elif kind == "factors":
        frequencies = frequencies / np.array(parameters.numbers("factors", head_dim // 2))
    elif kind == "llama3":
        frequencies = _llama3(frequencies, parameters, max_positions)
    elif kind == "yarn":
        frequencies = _yarn(frequencies, parameters, theta, max_positions)
        magnitude = _yarn_magnitude(parameters)
    if not 0 < frequencies.min() <= frequencies.max() < np.finfo(np.float32).max or not isfinite(magnitude):
        raise CheckpointError(f"{parameters.source}: the parameters of rope type {kind!r} give impossible frequencies")
    return Rope(tuple(frequencies.tolist()), magnitude)


def _llama3(frequencies: Float64, parameters: Settings, max_positions: int) -> Float64:
    """Long wavelengths are stretched by the factor, short ones kept, those between interpolated (Llama 3.1)."""
    factor = parameters.number("factor")
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if low >= high:
        raise parameters.wrong("low_freq_factor", f"below high_freq_factor, {high}")
    original = parameters.integer("original_max_position_embeddings", max_positions)
    turns = original * frequencies / (2 * pi)  # over the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled: Float64 = frequencies * ((1 - kept) / factor + kept)
    return scaled


def _yarn(frequencies: Float64, parameters: Settings, theta: float, max_positions: int) -> Float64:
    """Peng et al., "YaRN: efficient context window extension of large language models", 2023, section 3.2."""
    factor = parameters.number("factor")
    original = parameters.integer("original_max_position_embeddings", max_positions)
    half = len(frequencies)

    def index_of(turns: float) -> float:
        """The frequency, as a fractional index, that makes so many turns over the original context."""
        return half * log(original / (turns * 2 * pi)) / log(theta)

    first, last = index_of(parameters.number("beta_fast", 32.0)), index_of(parameters.number("beta_slow", 1.0))
    if parameters.flag("truncate", True):
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    ramp = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0.0, 1.0)
    scaled: Float64 = frequencies * (ramp / factor + (1 - ramp))
    return scaled


def _yarn_magnitude(parameters: Settings) -> float:
    """What sine and cosine are multiplied by: the paper's temperature, or DeepSeek's ratio of two of them."""
    if parameters.get("attention_factor") is not None:
        return parameters.number("attention_factor")
    growth = 0.1 * log(max(parameters.number("factor"), 1.0))
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return (growth * parameters.number("mscale") + 1) / (growth * parameters.number("mscale_all_dim") + 1)
    return growth + 1
