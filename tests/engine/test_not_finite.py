"""A model whose logits become NaN: the request that meets them fails with a readable error, and nobody else notices."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loader import load_engine
from octavo.engine.request import FinishReason, Output, Request, SamplingParams
from octavo.weights.tensor import Tensor

BROKEN = 200
"""A token whose embedding is not finite."""


@pytest.fixture(scope="module", params=[np.nan, np.inf], ids=["nan", "inf"])
def damaged(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of its own, and one damaged row in its embedding."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(str(folder / "model.safetensors"))
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.copy()
    embedding[BROKEN, 3] = request.param
    save_file(weights, str(folder / "model.safetensors"))
    return folder


@pytest.fixture(scope="module", params=["cpu", "reference"])
def engine(request: pytest.FixtureRequest, damaged: Path) -> Engine:
    if request.param == "cpu":
        pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
    config = EngineConfig(
        model=str(damaged),
        backend=str(request.param),
        max_num_seqs=8,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=2**20,
        enable_prefix_caching=False,
    )
    # What is damaged is refused; this stands for finite weights whose products are too large: loading does not see it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "is_finite", lambda tensor: True)
        return load_engine(config).engine


def run(engine: Engine, requests: list[Request]) -> dict[str, list[Output]]:
    found: dict[str, list[Output]] = {}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.request_id, []).append(output)
    assert engine.scheduler.pool.used_count == 0
    return found


def others() -> list[Request]:
    prompts = [[5, 6, 7], list(range(40, 70)), [9] * 20]
    return [
        Request(
            request_id=f"other {i}", prompt_token_ids=prompt, params=SamplingParams(max_tokens=8, seed=i, logprobs=1)
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"typical_p": 0.9},
        {"logprobs": 2},
        {"prompt_logprobs": 1},
        {"presence_penalty": 0.5, "logit_bias": {7: 1.0}},
    ],
    ids=str,
)
def test_a_request_whose_logits_are_not_finite_fails_alone(engine: Engine, params: dict[str, object]) -> None:
    bad = Request(
        request_id="bad",
        prompt_token_ids=[5, BROKEN, 6, 7],
        params=SamplingParams(max_tokens=8, **params),  # type: ignore[arg-type]
    )
    with np.errstate(all="ignore"):
        expected = run(engine, others())
        found = run(engine, [*others()[:1], bad, *others()[1:]])
        again = run(engine, others())  # on pages that held what was not finite
    (failure,) = found.pop("bad")
    assert failure.finish_reason is FinishReason.ERROR
    assert failure.token_ids == []
    assert failure.error is not None
    assert "not finite" in failure.error
    assert told(found) == told(expected) == told(again)


def told(outputs: dict[str, list[Output]]) -> dict[str, list[tuple[list[int], object, FinishReason | None]]]:
    return {name: [(o.token_ids, o.logprobs, o.finish_reason) for o in some] for name, some in outputs.items()}
