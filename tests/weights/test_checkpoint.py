"""Opening folders: transformers saves them, the tensors must be what its models hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.tensor import Format
from tests.weights.gguf_files import tiny_llama

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}


def saved(folder: Path, model_type: str = "llama", config: dict[str, Any] = LLAMA, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config))
    model.save_pretrained(folder, **options)
    return model


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    saved(tmp_path / "model", max_shard_size="10KB")
    return tmp_path / "model"


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
def test_a_saved_model_comes_back(shard_size: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", max_shard_size=shard_size)
    assert (tmp_path / "model" / "model.safetensors.index.json").exists() == (shard_size == "10KB")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.path == tmp_path / "model"
    assert checkpoint.config == json.loads((tmp_path / "model" / "config.json").read_text())
    assert checkpoint.generation_config == json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert checkpoint.gguf_metadata is None
    assert set(checkpoint.tensors) == set(model.state_dict())
    for name, parameter in model.state_dict().items():
        np.testing.assert_array_equal(checkpoint.tensors[name].to_float32(), parameter.numpy(), strict=True)


def test_a_bfloat16_model_stays_bfloat16(tmp_path: Path) -> None:
    model = saved(tmp_path / "full").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    for name, tensor in open_checkpoint(tmp_path / "half").tensors.items():
        assert tensor.format is Format.BF16
        np.testing.assert_array_equal(tensor.to_float32(), model.state_dict()[name].to(torch.float32).numpy())


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_has_one_form_with_or_without_prefix(prefix: str, tmp_path: Path) -> None:
    model = saved(tmp_path, "gpt2", GPT2)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {prefix + name.removeprefix("transformer."): weight for name, weight in weights.items()}
    renamed[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(renamed, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    expected = {name: weight.numpy() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        wanted = expected[name]
        if name.endswith(("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")):
            wanted = wanted.T
        assert tensor.name == name
        assert tensor.shape == wanted.shape
        np.testing.assert_array_equal(tensor.to_float32(), wanted)
    assert checkpoint.tensors["transformer.h.0.attn.c_attn.weight"].shape == (96, 32)
    assert checkpoint.config["tie_word_embeddings"] is True


def test_without_a_head_the_embeddings_are_tied(tmp_path: Path) -> None:
    saved(tmp_path, config=LLAMA | {"tie_word_embeddings": True})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert "lm_head.weight" not in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is True


def test_a_head_that_the_config_promises_must_be_there(tmp_path: Path) -> None:
    saved(tmp_path, config=LLAMA | {"tie_word_embeddings": True})
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"no 'lm_head.weight', though"):
        open_checkpoint(tmp_path)


def test_generation_config_may_be_absent(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).generation_config == {}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "list", "binary", "deep"])
def test_json_that_is_none_is_refused(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: not (valid JSON|a JSON object)") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}, which model.safetensors.index.json lists, is missing"):
        open_checkpoint(sharded)


def test_a_tensor_that_no_shard_has_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    weights = load_file(shard)
    lost = next(iter(weights))
    save_file({"other.weight": weights[lost]}, shard)
    with pytest.raises(CheckpointError, match=r"which model.safetensors.index.json lists, is in no shard"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {"lm_head.weight": 1}, {"lm_head.weight": "../model.safetensors"}])
def test_an_index_that_lies_is_refused(weight_map: Any, sharded: Path) -> None:
    edit_json(sharded / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: (no weight_map|'\.\./model)"):
        open_checkpoint(sharded)


def test_weights_in_another_format_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .* but pytorch_model.bin; convert"):
        open_checkpoint(folder)


def test_quantised_safetensors_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.qweight": torch.zeros(1, dtype=torch.uint8)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"'model.layers.0.qweight' is stored as U8"):
        open_checkpoint(folder)


def test_a_folder_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "only.gguf")
    assert open_checkpoint(tmp_path).path == path
    assert set(open_checkpoint(tmp_path).tensors) == set(open_checkpoint(path).tensors)
    shutil.copy(path, tmp_path / "another.gguf")
    with pytest.raises(CheckpointError, match=r"2 .gguf files here; name one of them: another.gguf, only.gguf"):
        open_checkpoint(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config.json nor a .gguf file"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        open_checkpoint(tmp_path / "empty.gguf")
    (tmp_path / "notes.txt").write_text("hello, world")
    with pytest.raises(CheckpointError, match="not a GGUF file: it starts with b'hell'"):
        open_checkpoint(tmp_path / "notes.txt")
