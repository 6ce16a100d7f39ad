"""Every family computes what transformers computes, at once and token by token."""

import numpy as np
import pytest

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.errors import CheckpointError, UnsupportedError
from octavo.models import build
from tests.backends.batches import Runner
from tests.models import oracle

TOKENS = np.random.default_rng(3).integers(0, 83, 61).tolist()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of the largest log-probability's size, for every token and position."""
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-4 * scale


@pytest.fixture(scope="module", params=oracle.CASES)
def case(request: pytest.FixtureRequest) -> tuple[ReferenceExecutor, np.ndarray]:
    model = oracle.make(request.param)
    built = build(model.config.to_dict())
    executor = ReferenceExecutor(
        built.graph, oracle.tensors(model), vocab_size=built.vocab_size, num_pages=64, page_size=8
    )
    expected = oracle.logprobs(model, TOKENS)
    assert expected.std() > 0.3, "a model whose outputs are all alike tests nothing"
    return executor, expected


def test_prefill(case: tuple[ReferenceExecutor, np.ndarray]) -> None:
    executor, expected = case
    close(Runner(executor).run(TOKENS), expected)


def test_token_by_token(case: tuple[ReferenceExecutor, np.ndarray]) -> None:
    executor, expected = case
    close(Runner(executor).run(TOKENS, [1]), expected)


def test_in_a_mixed_batch(case: tuple[ReferenceExecutor, np.ndarray]) -> None:
    executor, expected = case
    runner = Runner(executor)
    it, other, late = runner.sequence(TOKENS), runner.sequence(TOKENS[5:40]), runner.sequence(TOKENS[::-1])
    found = [runner.step([(it, 20), (other, 3)])[0]]
    found.append(runner.step([(other, 1), (it, 1), (late, 30)])[1])
    found.append(runner.step([(late, 5), (it, 40), (other, 1)])[1])
    close(np.concatenate(found), expected)


def test_transformers_4_configs_mean_the_same() -> None:
    model = oracle.make("llama-llama3")
    config = model.config.to_dict()
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    assert build(config).graph == build(model.config.to_dict()).graph


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM.*LlamaForCausalLM"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "dynamic"),
        ({"hidden_act": "relu6"}, "relu6.*silu"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, object], words: str) -> None:
    config = oracle.make("llama").config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    with pytest.raises(UnsupportedError, match=words):
        build(config | change)


@pytest.mark.parametrize("change", [{"hidden_size": 0}, {"num_attention_heads": "six"}, {"vocab_size": None}])
def test_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    config = oracle.make("llama").config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    with pytest.raises(CheckpointError, match=next(iter(change))):
        build(config | change)


def test_missing_and_misshapen_weights_are_named() -> None:
    model = oracle.make("llama")
    built, tensors = build(model.config.to_dict()), oracle.tensors(model)
    tensors["model.norm.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"k_proj.weight is missing.*model.norm.weight is \[72, 48\]"):
        ReferenceExecutor(built.graph, tensors, vocab_size=built.vocab_size, num_pages=4)
