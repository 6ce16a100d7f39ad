"""Configs as they are found: transformers 4 and 5, sections left out, features that are not there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.errors import UnsupportedError
from octavo.graph.ops import Attention
from octavo.models import build
from octavo.weights.checkpoint import open_checkpoint
from tests.backends.batches import Runner
from tests.models import oracle

TOKENS = np.random.default_rng(4).integers(0, 80, 40).tolist()


def windows(config: dict[str, Any]) -> list[int | None]:
    return [op.window for op in build(config).graph.attention_layers()]


def test_the_language_model_inside_gemma3_with_images(tmp_path: Path) -> None:
    torch.manual_seed(3)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = oracle.GEMMA3 | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}
    config = Gemma3Config(
        text_config=text,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=82,
        boi_token_index=80,
        eoi_token_index=81,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)

    checkpoint = open_checkpoint(tmp_path)
    built = build(checkpoint.config)
    executor = ReferenceExecutor(built.graph, checkpoint.tensors, vocab_size=built.vocab_size, num_pages=8)
    expected = oracle.logprobs(model, TOKENS)
    np.testing.assert_allclose(Runner(executor).run(TOKENS), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("flags", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}], ids=str)
def test_gpt2_scales(flags: dict[str, bool]) -> None:
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(**oracle.GPT2, **flags, attn_implementation="eager")).eval()
    built = build(model.config.to_dict())
    executor = ReferenceExecutor(built.graph, oracle.tensors(model), vocab_size=built.vocab_size, num_pages=8)
    expected = oracle.logprobs(model, TOKENS)
    np.testing.assert_allclose(Runner(executor).run(TOKENS), expected, atol=1e-4 * np.abs(expected).max())


def test_gemma3_of_transformers_4_means_the_same() -> None:
    new = oracle.make("gemma3").config.to_dict() | {"architectures": ["Gemma3ForCausalLM"]}
    new["rope_parameters"]["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "layer_types")}
    old |= {
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
    }
    assert build(old).graph == build(new).graph


def test_published_gemma3_names_only_what_differs() -> None:
    # The text_config of google/gemma-3-4b-it, complete.
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    model = build({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text})
    parameters = model.graph.parameters()
    assert (model.vocab_size, model.max_position_embeddings) == (262_208, 131_072)
    assert parameters["model.layers.33.self_attn.k_proj.weight"] == (1024, 2560)
    layers = model.graph.attention_layers()
    assert [layer for layer, op in enumerate(layers) if op.window is None] == [5, 11, 17, 23, 29]


def test_qwen_windows_need_their_switch() -> None:
    config = oracle.make("qwen2").config.to_dict() | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}
    del config["layer_types"]
    assert windows(config | {"max_window_layers": 1}) == [None] * 3
    assert windows(config | {"max_window_layers": 1, "use_sliding_window": True}) == [None, 16, 16]


def test_yarn_lengthens_the_context() -> None:
    # As Qwen's model cards tell users to enable it: max_position_embeddings stays as it was.
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = oracle.make("qwen2").config.to_dict() | {"architectures": ["Qwen2ForCausalLM"]}
    assert build(config).max_position_embeddings == 512
    assert build(config | {"rope_parameters": None, "rope_scaling": yarn}).max_position_embeddings == 2048


def test_the_model_type_decides_when_no_architecture_is_named() -> None:
    config = oracle.make("llama").config.to_dict() | {"architectures": None}
    assert build(config).graph == build(config | {"architectures": ["LlamaForCausalLM"]}).graph
    with pytest.raises(UnsupportedError, match=r"model type 'mixtral'.*LlamaForCausalLM"):
        build(config | {"model_type": "mixtral"})


@pytest.mark.parametrize(
    ("name", "architecture", "change", "words"),
    [
        ("gemma3", "Gemma3ForCausalLM", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("gemma3", "Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3", "Qwen3ForCausalLM", {"layer_types": ["full_attention", "chunked", "chunked"]}, "'chunked'"),
        ("gpt2", "GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention"),
        ("llama", "Qwen3MoeForCausalLM", {}, "'Qwen3MoeForCausalLM' is not supported; supported: LlamaForCausalLM"),
    ],
)
def test_features_that_are_not_there_are_named(
    name: str, architecture: str, change: dict[str, Any], words: str
) -> None:
    config = oracle.make(name).config.to_dict() | {"architectures": [architecture]}
    with pytest.raises(UnsupportedError, match=words):
        build(config | change)


def test_kv_heads_are_those_of_every_layer() -> None:
    layers = build(oracle.make("llama-one-kv-head").config.to_dict() | {"architectures": None}).graph.attention_layers()
    assert [(op.layer, op.num_heads, op.num_kv_heads, op.head_dim) for op in layers] == [
        (layer, 6, 1, 20) for layer in range(3)
    ]
    assert all(isinstance(op, Attention) for op in layers)
