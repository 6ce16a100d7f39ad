"""Tiny random models of every family as transformers builds them: the oracle for graphs and backends."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from octavo.graph.ops import Graph
from octavo.models import build
from octavo.weights.tensor import Format, Tensor

torch.set_num_threads(1)  # for models as small as these a second one only waits for its turn

SIZES = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3 = SIZES | {"head_dim": 16, "sliding_window": 7, "num_hidden_layers": 7, "query_pre_attn_scalar": 24}
FULL = ["full_attention"]
GPT2 = {"vocab_size": 83, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 512}

# name -> (model type, config)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama-heads-of-their-own": ("llama", SIZES | {"num_key_value_heads": 6}),
    "llama-one-kv-head": ("llama", SIZES | {"num_key_value_heads": 1, "head_dim": 20}),
    "llama-biased-tied": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": ("llama", SIZES | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-llama3": ("llama", SIZES | {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", SIZES | {"rope_parameters": YARN}),
    "mistral": ("mistral", SIZES | {"sliding_window": None}),
    "mistral-window": ("mistral", SIZES | {"sliding_window": 9, "head_dim": 12}),
    "qwen2": ("qwen2", SIZES),
    "qwen2-window": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 14}),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-pattern-of-3": (
        "gemma3_text",
        GEMMA3 | {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-wide": ("gpt2", GPT2 | {"n_inner": 100, "activation_function": "gelu"}),
}

GPT2_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def make(name: str) -> PreTrainedModel:
    """The model with random weights whose effects can be told apart: biases and norms are random too."""
    torch.manual_seed(7)
    model_type, sizes = CASES[name]
    config = CONFIG_MAPPING[model_type](**sizes, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.5
            offset = 0.0 if parameter.ndim > 1 else float(parameter.mean())
            parameter.copy_(torch.randn_like(parameter) * scale + offset)
        model.tie_weights()
    return model


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under their names in a checkpoint, linear weights as [out, in]."""
    found = {}
    for name, value in model.state_dict().items():
        array = value.detach().numpy().astype(np.float32)
        if model.config.model_type == "gpt2" and name.endswith(GPT2_TRANSPOSED):
            array = array.T
        array = np.ascontiguousarray(array)
        found[name] = Tensor(name, array.shape, Format.F32, array)
    return found


class Parts(NamedTuple):
    """What backends are made of."""

    graph: Graph
    tensors: dict[str, Tensor]
    vocab_size: int


@cache
def parts(name: str) -> Parts:
    """The model's, for those who change nothing in them."""
    model = make(name)
    built = build(model.config.to_dict())
    return Parts(built.graph, tensors(model), built.vocab_size)


def logprobs(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """Float64[len(tokens), vocab]: log-probabilities after every token."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found
