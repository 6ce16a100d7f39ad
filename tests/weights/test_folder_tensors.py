"""Names and heads of folders as transformers reads them: the same file, the same logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.errors import CheckpointError
from octavo.models import build
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from tests.backends.batches import Runner
from tests.models import oracle

TOKENS = np.random.default_rng(4).integers(0, 80, 40).tolist()
Weights = dict[str, torch.Tensor]
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def logprobs(folder: Path) -> tuple[Checkpoint, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    built = build(checkpoint.config)
    executor = ReferenceExecutor(built.graph, checkpoint.tensors, vocab_size=built.vocab_size, num_pages=8)
    return checkpoint, Runner(executor).run(TOKENS)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def rewrite(folder: Path, change: Callable[[Weights], Weights], **config: Any) -> None:
    """Change the weights and the config of a saved model; None leaves a key out."""
    weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@pytest.fixture
def images(tmp_path: Path) -> PreTrainedModel:
    """A Gemma 3 that also takes images, saved into `tmp_path`, its head different from its embeddings."""
    torch.manual_seed(3)
    config = Gemma3Config(
        text_config=oracle.GEMMA3,
        vision_config=VISION | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=82,
        boi_token_index=80,
        eoi_token_index=81,
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "language_model.", "model.", ""])
@pytest.mark.parametrize("head", ["lm_head.weight", "language_model.lm_head.weight"])
def test_the_language_model_under_every_name(prefix: str, head: str, images: PreTrainedModel, tmp_path: Path) -> None:
    def renamed(weights: Weights) -> Weights:
        language = images.model.language_model.state_dict()
        return {prefix + name: value for name, value in language.items()} | {
            head: weights[next(name for name in weights if name.endswith("lm_head.weight"))],
            "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight": torch.ones(16),
        }

    rewrite(tmp_path, renamed)
    checkpoint, found = logprobs(tmp_path)
    close(found, oracle.logprobs(images, TOKENS))
    assert "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight" in checkpoint.tensors


@pytest.mark.parametrize("tied", [False, True])
def test_as_transformers_itself_saves_it(tied: bool, images: PreTrainedModel, tmp_path: Path) -> None:
    images.config.tie_word_embeddings = tied
    images.tie_weights()
    images.save_pretrained(tmp_path)
    checkpoint, found = logprobs(tmp_path)
    assert checkpoint.config["tie_word_embeddings"] is tied
    close(found, oracle.logprobs(images, TOKENS))


def test_two_names_for_one_weight_are_refused(images: PreTrainedModel, tmp_path: Path) -> None:
    rewrite(tmp_path, lambda weights: weights | {"model.norm.weight": torch.ones(48)})
    with pytest.raises(CheckpointError, match=r"'.*norm.weight' and '.*norm.weight' are both the weight 'model.norm"):
        open_checkpoint(tmp_path)


HEADS: dict[str, tuple[Any, Callable[[Weights], Weights], bool, bool]] = {
    # what the config says, what becomes of the weights, whether they are tied, whether there is something to say
    "a different head": (True, lambda w: w, False, True),
    "a different head, and no word": (None, lambda w: w, False, False),
    "a different head, as announced": (False, lambda w: w, False, False),
    "a copy": (True, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()}, True, False),
    "no head": (True, lambda w: {name: value for name, value in w.items() if name != "lm_head.weight"}, True, False),
    "only a head": (
        True,
        lambda w: {name: value for name, value in w.items() if name != "model.embed_tokens.weight"},
        True,
        False,
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_the_head_that_is_there_is_used(case: str, tmp_path: Path) -> None:
    says, change, tied, told = HEADS[case]
    oracle.make("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, change, tie_word_embeddings=says)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    checkpoint, found = logprobs(tmp_path)
    close(found, oracle.logprobs(theirs, TOKENS))
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    assert len(checkpoint.notes) == told
    assert all("lm_head.weight differs from model.embed_tokens.weight" in note for note in checkpoint.notes)


def test_gpt2_with_a_head_of_its_own(tmp_path: Path) -> None:
    model = oracle.make("gpt2")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"lm_head.weight": torch.randn(83, 48)})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    checkpoint, found = logprobs(tmp_path)
    close(found, oracle.logprobs(theirs, TOKENS))
    assert checkpoint.config["tie_word_embeddings"] is False
