"""Answers that are kept: what both do alike with one cache of the same size. What differs is in docs/from-triton.md."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.triton.servers import Served, serving

COUNTS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            self.count += 1
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            count = np.full((len(given), 1), self.count, np.int32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", given), pb_utils.Tensor("COUNT", count)]))
        return answers
"""
TENSORS = """
max_batch_size: 4
input [{ name: "IN" data_type: TYPE_INT32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [-1] }, { name: "COUNT" data_type: TYPE_INT32 dims: [1] }]
"""
CACHED = "response_cache { enable: true }\n"
ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling { step [{ model_name: "MODEL" model_version: -1 input_map { key: "IN" value: "IN" }
  output_map { key: "OUT" value: "OUT" } output_map { key: "COUNT" value: "COUNT" } }] }
"""
MODELS = {
    "cached": 'backend: "python"\n' + TENSORS + CACHED,
    "batched": 'backend: "python"\n' + TENSORS + CACHED + "dynamic_batching { }\n",
    "plain": 'backend: "python"\n' + TENSORS,
    "whole": ENSEMBLE.replace("MODEL", "plain") + TENSORS + CACHED,
    "steps": ENSEMBLE.replace("MODEL", "cached") + TENSORS,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Octavo and Triton, with a cache."""
    models = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        version = models / name / "1"
        version.mkdir(parents=True)
        (models / name / "config.pbtxt").write_text(config)
        if "ensemble" not in config:
            (version / "model.py").write_text(COUNTS)
    [caches] = Path(os.environ["OCTAVO_TRITON"]).glob("lib/python3.*/site-packages/pytriton/tritonserver/caches")
    options = {"octavo": (), "triton": (f"--cache-directory={caches}",)}
    with ExitStack() as started:
        octavo, triton = [
            started.enter_context(
                serving(name, models, tmp_path_factory.mktemp(name), "--cache-config=local,size=1048576", *more)
            )
            for name, more in options.items()
        ]
        yield octavo, triton


def ask(served: Served, model: str, *values: int, **more: Any) -> dict[str, Any]:
    tensor = {"name": "IN", "shape": [1, len(values)], "datatype": "INT32", "data": list(values)}
    answer = served.ask("POST", f"/v2/models/{model}/infer", json={"inputs": [tensor], **more}).json()
    return {each["name"]: (each["shape"], each["data"]) for each in answer["outputs"]}


def counts(served: Served, model: str) -> dict[str, int]:
    """The counts of a model's statistics."""
    [found] = served.ask("GET", f"/v2/models/{model}/stats").json()["model_stats"]
    durations = {name: each["count"] for name, each in found["inference_stats"].items()}
    return {**durations, "inferences": found["inference_count"], "executions": found["execution_count"]}


@pytest.mark.parametrize("model", ["cached", "batched", "whole", "steps"])
def test_the_same_requests_have_the_same_answers_and_statistics(both: tuple[Served, Served], model: str) -> None:
    found = []
    for served in both:
        answers = [
            ask(served, model, 1, 2),
            ask(served, model, 1, 2, id="7", parameters={"priority": 1, "timeout": 9000000}),
            ask(served, model, 2, 1),
            ask(served, model, 1, 2, outputs=[{"name": "OUT"}, {"name": "COUNT"}]),
            ask(served, model, 1, 2, outputs=[{"name": "COUNT"}, {"name": "OUT"}]),
            ask(served, model, 1),
            ask(served, model, 2, 1),
        ]
        found.append((answers, counts(served, model), counts(served, "plain"), counts(served, "cached")))
    assert found[0] == found[1]
