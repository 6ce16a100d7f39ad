"""GGUF files of every family against transformers: the same weights, names and logits as the model they were made from.

The tests convert tiny random transformers models the way llama.cpp's converter does, naming tensors with the `gguf`
package's own table, and then ask for the Hugging Face model back.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, quants
from numpy.typing import NDArray
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.tensor import Format
from tests.weights.gguf_files import tiny_llama, write_gguf

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_theta": 50_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA3 = SIZES | {"head_dim": 32, "sliding_window": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 32}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES | {"rope_parameters": ROPE | {"rope_type": "default"}}),
    "llama-biased-untied-wide-heads": (
        "llama",
        SIZES | {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": False},
    ),
    "llama-tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "llama-linear": ("llama", SIZES | {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "llama-yarn": ("llama", SIZES | {"rope_parameters": ROPE | YARN}),
    "mistral": ("mistral", SIZES | {"sliding_window": 8, "head_dim": 16}),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES | {"head_dim": 32}),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-linear": (
        "gemma3_text",
        GEMMA3
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            }
        },
    ),
    "gpt2": ("gpt2", GPT2),
}
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def random_model(model_type: str, config: Mapping[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual initialisation, so that every weight tells
            parameter.normal_(0, 0.2)
    return model.eval()


def metadata_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What llama.cpp's converter writes about a model."""
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if arch == "gpt2":
        values |= {"feed_forward_length": config.n_inner, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
        return {f"gpt2.{key}": value for key, value in values.items()}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if arch == "gemma3":
        values |= {"rope.freq_base_swa": rope["sliding_attention"]["rope_theta"]}
        rope = rope["full_attention"]
    values |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": rope["rope_theta"],
    }
    if arch == "llama":
        values["rope.dimension_count"] = head_dim
    if arch != "qwen2" and getattr(config, "sliding_window", None):
        values["attention.sliding_window"] = config.sliding_window
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        values |= {f"rope.scaling.yarn_{key}": rope[key] for key in ("beta_fast", "beta_slow")}
    ids = {f"tokenizer.ggml.{key}": getattr(config, key) for key in ("bos_token_id", "eos_token_id")}
    return {f"{arch}.{key}": value for key, value in values.items()} | ids


def as_converter_stores(name: str, array: NDArray[Any], config: PreTrainedConfig) -> NDArray[Any]:
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return array + 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return array.T
    return array


def convert(
    model: PreTrainedModel,
    path: Path,
    store: Callable[[NDArray[Any]], tuple[NDArray[Any], Format]] = lambda array: (array, Format.F32),
    **extra: Any,
) -> Checkpoint:
    config = model.config
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(MODEL_ARCH(kind), config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = as_converter_stores(name, parameter.numpy(), config)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = (
            (stored, Format.F32) if stored.ndim == 1 else store(np.ascontiguousarray(stored))
        )
    return open_checkpoint(write_gguf(path / "model.gguf", arch, metadata_of(config) | extra, tensors))


def rebuilt(checkpoint: Checkpoint) -> PreTrainedModel:
    """The transformers model that a checkpoint's own config and tensors make."""
    config = CONFIG_MAPPING[checkpoint.config["model_type"]](**checkpoint.config)
    assert config.architectures == [type(AutoModelForCausalLM.from_config(config)).__name__]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    state = {}
    for name, tensor in checkpoint.tensors.items():
        values = torch.from_numpy(tensor.to_float32().copy())
        conv1d = config.model_type == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name] = values.T if conv1d else values
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(48)[None] % 96).logits


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_comes_back(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    checkpoint = convert(model, tmp_path)
    saved = model.state_dict()
    tied = model.config.tie_word_embeddings
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert set(checkpoint.tensors) == set(saved) - ({"lm_head.weight"} if tied else set())
    for name, tensor in checkpoint.tensors.items():
        expected = saved[name].numpy()
        if case == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            expected = expected.T
        assert tensor.name == name
        assert tensor.shape == expected.shape
        # Adding one to Gemma's norms rounds them.
        np.testing.assert_allclose(tensor.to_float32(), expected, rtol=0, atol=1.2e-7 if "gemma3" in case else 0)
    torch.testing.assert_close(logits(rebuilt(checkpoint)), logits(model), rtol=1e-4, atol=1e-4)


def test_llama3_scaling_comes_back_as_the_factors_of_its_frequencies(tmp_path: Path) -> None:
    config = SIZES | {"rope_parameters": ROPE | LLAMA3}
    scaled = random_model("llama", config)
    plain = random_model("llama", SIZES | {"rope_parameters": ROPE | {"rope_type": "default"}})
    factors = (plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq).numpy()
    assert factors.min() == 1
    assert factors.max() == 8
    path = tiny_llama(tmp_path / "model.gguf")
    reader = gguf.GGUFReader(path)
    tensors = {t.name: (np.array(t.data), Format[t.tensor_type.name]) for t in reader.tensors}
    metadata = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    tensors["rope_freqs.weight"] = (factors, Format.F32)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "scaled.gguf", "llama", metadata, tensors))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": factors.tolist()}
    assert "rope_freqs.weight" not in checkpoint.tensors


@pytest.mark.parametrize("form", [Format.Q4_0, Format.Q8_0])
def test_quantised_query_rows_are_reordered_without_dequantising(form: Format, tmp_path: Path) -> None:
    model = random_model("llama", SIZES | {"intermediate_size": 128})
    kind = gguf.GGMLQuantizationType[form.name]
    checkpoint = convert(model, tmp_path, lambda array: (quants.quantize(array, kind), form))
    for name, saved in model.state_dict().items():
        tensor = checkpoint.tensors[name]
        if saved.ndim == 2:
            assert tensor.format is form
            expected = quants.quantize(saved.numpy(), kind)
            np.testing.assert_array_equal(tensor.data, expected)


def test_config_of_a_whole_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "model.gguf"))
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 6,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    assert checkpoint.gguf_metadata is not None
    assert checkpoint.gguf_metadata["tokenizer.ggml.tokens"] == ["<s>", "</s>", "a", "é", "", "日本"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a good file, to be spoilt."""
    reader = gguf.GGUFReader(tiny_llama(tmp_path_factory.mktemp("parts") / "model.gguf"))
    metadata = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    return metadata, {t.name: (np.array(t.data), Format[t.tensor_type.name]) for t in reader.tensors}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.dimension_count": 8}, "is 8, different from the head size 16"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs from layer to layer"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope', neither 'linear' nor 'yarn'"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.yarn_attn_factor": 0.5,
            },
            "yarn_attn_factor is 0.5",
        ),
    ],
    ids=str,
)
def test_features_that_are_not_supported_are_named(
    changes: dict[str, Any], said: str, parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = parts
    with pytest.raises(UnsupportedError, match=said):
        open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama", metadata | changes, tensors))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.block_count": 3}, "block_count is 3, but the last layer has no tensors"),
        ({"llama.block_count": 2**32 - 1}, "below 2"),
        ({"llama.embedding_length": "64"}, "is '64', not a whole number"),
        ({"llama.attention.head_count": 0}, "is 0, not positive"),
        ({"llama.attention.head_count": 2, "llama.rope.dimension_count": 32}, "has 32 rows, not 2 heads of 32"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan, not a positive number"),
        ({"tokenizer.ggml.eos_token_id": "</s>"}, "not a whole number"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_is_refused(
    changes: dict[str, Any], said: str, parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = parts
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama", metadata | changes, tensors))


def test_one_number_per_layer_is_taken_when_all_are_the_same(
    parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = parts
    changed = metadata | {"llama.feed_forward_length": [64, 64]}
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", changed, tensors)).config["intermediate_size"] == 64


def test_a_missing_value_is_named(parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    metadata, tensors = parts
    for key in ("llama.context_length", "llama.attention.layer_norm_rms_epsilon"):
        left = {name: value for name, value in metadata.items() if name != key}
        with pytest.raises(CheckpointError, match=f"{key} is None, not a"):
            open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama", left, tensors))


def test_architectures_and_tensors_that_are_not_known_are_named(
    parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = parts
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; supported are llama, qwen2, qwen3"):
        open_checkpoint(write_gguf(tmp_path / "other.gguf", "mamba", {}, tensors))
    extra = tensors | {"blk.0.attn_sinks.weight": (np.ones(4, np.float32), Format.F32)}
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_sinks.weight' is not one that llama models have"):
        open_checkpoint(write_gguf(tmp_path / "extra.gguf", "llama", metadata, extra))
    headless = {name: tensor for name, tensor in tensors.items() if name != "token_embd.weight"}
    with pytest.raises(CheckpointError, match=r"no tensor 'token_embd.weight'"):
        open_checkpoint(write_gguf(tmp_path / "part.gguf", "llama", metadata, headless))


@pytest.mark.parametrize(("layers", "scalar"), [(26, 128), (62, 96)])
def test_gemma3_27b_is_known_by_its_layers(layers: int, scalar: int, tmp_path: Path) -> None:
    """Its queries are scaled by hidden size / heads, 5376 / 32 in truth, the others' by the head size."""
    values = {"block_count": layers, "embedding_length": 384, "attention.head_count": 4, "attention.key_length": 128}
    values |= {"attention.layer_norm_rms_epsilon": 1e-6, "feed_forward_length": 8, "context_length": 32}
    one = (np.ones((1, 384), np.float32), Format.F32)
    tensors = {"token_embd.weight": one, f"blk.{layers - 1}.attn_norm.weight": one}
    metadata = {f"gemma3.{key}": value for key, value in values.items()}
    config = open_checkpoint(write_gguf(tmp_path / "model.gguf", "gemma3", metadata, tensors)).config
    assert config["query_pre_attn_scalar"] == scalar
    assert config["rope_theta"] == 1e6
    assert config["layer_types"] == ["full_attention"] * layers  # no window in this file
