"""From GGUF's tensors to Hugging Face's: the names, and what llama.cpp's converter did to some of the values."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.tensor import Format, Tensor

_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER = _LLAMA_LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_LLAMA_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GPT2_OUTSIDE = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}

_NAME = re.compile(r"(?:blk\.(?P<layer>[0-9]+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def hugging_face_name(architecture: str, name: str) -> str | None:
    """Hugging Face's name of GGUF's tensor `name`, or None when the architecture has no such tensor."""
    outside = _GPT2_OUTSIDE if architecture == "gpt2" else _LLAMA_OUTSIDE
    layer = {"gpt2": _GPT2_LAYER, "gemma3": _GEMMA3_LAYER}.get(architecture, _LLAMA_LAYER)
    if (match := _NAME.fullmatch(name)) is None:
        return None
    number, part, kind = match.groups()
    if number is None:
        return f"{outside[part]}.{kind}" if part in outside else None
    prefix = "transformer.h" if architecture == "gpt2" else "model.layers"
    return f"{prefix}.{number}.{layer[part]}.{kind}" if part in layer else None


def canonical_tensors(
    path: Path, architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """How to get each tensor as Hugging Face has it, under Hugging Face's name; nothing is read yet.

    `path` is for messages; `config` is what `config_from_gguf` made of the same file.

    Raises:
        UnsupportedError: a tensor that the architecture does not have: the model has a feature that is not known here.
        CheckpointError: query or key rows that do not divide into heads.
    """
    canonical: dict[str, Callable[[], Tensor]] = {}
    for gguf_name, tensor in tensors.items():
        if gguf_name == "rope_freqs.weight":  # part of the config
            continue
        name = hugging_face_name(architecture, gguf_name)
        if name is None:
            raise UnsupportedError(f"{path}: tensor {gguf_name!r} is not one that {architecture} models have")
        renamed = replace(tensor, name=name)
        if architecture == "llama" and (heads := _rotary_heads(name, config)):
            if tensor.shape[0] != heads * config["head_dim"]:
                raise CheckpointError(
                    f"{path}: {gguf_name!r} has {tensor.shape[0]} rows, not {heads} heads of {config['head_dim']}"
                )
            canonical[name] = partial(_halves_from_pairs, renamed, heads)
        elif architecture == "gemma3" and name.endswith("norm.weight"):
            canonical[name] = partial(_without_added_one, renamed)
        else:
            canonical[name] = partial(_unchanged, renamed)
    return canonical


def _rotary_heads(name: str, config: Mapping[str, Any]) -> int:
    """How many heads the tensor's rows belong to, if rotary embedding turns them, else 0."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    if ".k_proj." in name:
        return int(config["num_key_value_heads"])
    return 0


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _halves_from_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Undo the reordering of query and key rows.

    Rotary embedding turns pairs of a head's dimensions: (i, i + half) in Hugging Face's Llama, (2i, 2i + 1) in the
    original one and llama.cpp, whose converter interleaves each head's rows to match.
    """
    rows = np.arange(tensor.shape[0]).reshape(heads, -1, 2)
    return tensor.take_rows(rows.swapaxes(1, 2).reshape(-1))


def _without_added_one(tensor: Tensor) -> Tensor:
    """Undo Gemma's `1 + weight`, which the converter has already added to the norms."""
    return replace(tensor, format=Format.F32, data=tensor.to_float32() - 1)
