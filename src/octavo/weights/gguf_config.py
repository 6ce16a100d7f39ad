"""From GGUF metadata to what Hugging Face's config.json would say about the same model."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.tensor import Tensor

SUPPORTED = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
"""Values of `general.architecture` that are understood. Mistral and SmolLM2 are `llama` there."""


def config_from_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config.json of the model in a GGUF file, under Hugging Face's keys for its family.

    One thing config.json cannot say: Llama 3's rotary scaling, of which a GGUF file keeps only the outcome, one divisor
    for each rotary frequency. It becomes `rope_scaling = {"rope_type": "factors", "factors": [head_dim / 2 floats]}`.

    Args:
        path: the file, for messages.
        metadata: its metadata.
        tensors: its tensors under the file's names, asked for the shapes and presence of some.

    Raises:
        UnsupportedError: the architecture, or a feature of it, is not supported.
        CheckpointError: a value is missing or cannot be.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in SUPPORTED:
        raise UnsupportedError(
            f"{path}: GGUF architecture {architecture!r:.80} is not supported; supported are {', '.join(SUPPORTED)}"
        )
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: no tensor 'token_embd.weight': not a whole language model")
    values = _Values(path, metadata, architecture)
    if values.integer("expert_count", 0):
        raise UnsupportedError(f"{path}: a mixture of experts, which is not supported")
    last_layer = values.positive("block_count") - 1
    if f"blk.{last_layer}.attn_norm.weight" not in tensors:
        raise CheckpointError(
            f"{path}: {architecture}.block_count is {last_layer + 1}, but the last layer has no tensors"
        )
    tokenizer = _Values(path, metadata, "tokenizer.ggml")
    common = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": tokenizer.optional_integer("bos_token_id"),
        "eos_token_id": tokenizer.optional_integer("eos_token_id"),
    }
    return common | (_gpt2(values) if architecture == "gpt2" else _llama_like(values, tensors))


class _Values:
    """The metadata under one prefix, read as the types they must have."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], prefix: str) -> None:
        self.path = path
        self.metadata = metadata
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.prefix}.{key}")

    def unsupported(self, key: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.path}: {self.prefix}.{key} {what}, which is not supported")

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: metadata {self.prefix}.{key} is {self.get(key)!r:.80}, not {wanted}")

    def optional_integer(self, key: str) -> int | None:
        value = self.get(key)
        if isinstance(value, list):  # one number per layer
            if len(set(value)) != 1:
                raise self.unsupported(key, "differs from layer to layer")
            value = value[0]
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise self.wrong(key, "a whole number below 2^31")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.optional_integer(key)
        if value is None:
            value = default
        if value is None:
            raise self.wrong(key, "a whole number")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        if (value := self.integer(key, default)) == 0:
            raise self.wrong(key, "positive")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None:
            value = default
        if type(value) not in (int, float) or not 0 < value < inf:
            raise self.wrong(key, "a positive number")
        return float(value)


def _gpt2(values: _Values) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": values.positive("embedding_length"),
        "n_inner": values.positive("feed_forward_length"),
        "n_layer": values.positive("block_count"),
        "n_head": values.positive("attention.head_count"),
        "n_positions": values.positive("context_length"),
        "layer_norm_epsilon": values.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _llama_like(values: _Values, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden_size, num_heads = values.positive("embedding_length"), values.positive("attention.head_count")
    head_dim = values.positive("attention.key_length", hidden_size // num_heads)
    num_layers = values.positive("block_count")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := values.positive(key, head_dim)) != head_dim:
            raise values.unsupported(key, f"is {other}, different from the head size {head_dim}")
    config: dict[str, Any] = {
        "architectures": [_CLASSES[values.prefix]],
        "model_type": values.prefix,
        "hidden_size": hidden_size,
        "intermediate_size": values.positive("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": values.positive("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": values.positive("context_length"),
        "rms_norm_eps": values.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": values.real("rope.freq_base", 1_000_000.0 if values.prefix == "gemma3" else 10_000.0),
        "rope_scaling": _rope_scaling(values, head_dim, tensors),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    window = values.integer("attention.sliding_window", 0) or None
    if values.prefix == "llama" and window is not None:
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    if values.prefix == "gemma3":
        config |= _gemma3(values, config, window)
    return config


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


def _gemma3(values: _Values, config: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    # Every sixth layer attends to everything; files say so only when it is otherwise.
    period = values.positive("attention.sliding_window_pattern", 6)
    is_local = [window is not None and (layer + 1) % period != 0 for layer in range(num_layers)]
    softcapping = values.get("final_logit_softcapping")
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window,
        "layer_types": ["sliding_attention" if local else "full_attention" for local in is_local],
        "rope_local_base_freq": values.real("rope.freq_base_swa", 10_000.0),
        # Files do not say it: the 27B model, known by its 62 layers, scales queries by another number than the others.
        "query_pre_attn_scalar": config["hidden_size"] // num_heads if num_layers == 62 else config["head_dim"],
        "final_logit_softcapping": None if softcapping is None else values.real("final_logit_softcapping"),
    }


def _rope_scaling(values: _Values, head_dim: int, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    kind = values.get("rope.scaling.type")
    if kind in (None, "none"):
        if (factors := tensors.get("rope_freqs.weight")) is not None:
            if factors.shape != (head_dim // 2,):
                raise CheckpointError(f"{values.path}: rope_freqs.weight has shape {factors.shape}, heads {head_dim}")
            return {"rope_type": "factors", "factors": factors.to_float32().tolist()}
        if values.get("rope.scale_linear") is not None:  # the name in old files
            return {"rope_type": "linear", "factor": values.real("rope.scale_linear")}
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": values.real("rope.scaling.factor")}
    if kind != "yarn":
        raise values.unsupported("rope.scaling.type", f"is {kind!r:.80}, neither 'linear' nor 'yarn'")
    for key in ("yarn_ext_factor", "yarn_attn_factor", "attn_factor", "yarn_log_multiplier"):
        if (value := values.get(f"rope.scaling.{key}")) not in (None, 1.0):
            raise values.unsupported(f"rope.scaling.{key}", f"is {value!r:.80}, not the default")
    return {
        "rope_type": "yarn",
        "factor": values.real("rope.scaling.factor"),
        "original_max_position_embeddings": values.positive("rope.scaling.original_context_length"),
        "beta_fast": values.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": values.real("rope.scaling.yarn_beta_slow", 1.0),
    }
