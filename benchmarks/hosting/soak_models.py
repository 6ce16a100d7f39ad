"""The repository that `soak.py` serves: models that double what they are given, fail as they are asked to, count, add
up and ask one another."""

from pathlib import Path

FAILS, SLOW, RAISES, CRASHES = -1.0, -3.0, -5.0, -7.0
"""What models do when this is the first number that they are given; twice as much says nothing."""

RELOADED = ("first", "second")
"""Models that are loaded anew, from files that have been written again."""

KILLED = ("first", "second", "asks", "words")
"""Models whose processes are killed."""

LASTING = ("steady", "sums")
"""Models whose processes are there from the beginning to the end."""

QUEUE = 4
"""Requests that may wait for `narrow`."""

IDLE_SECONDS = 3.0
"""After which a sequence that nothing comes for is forgotten."""

DOUBLES = f"""GENERATION = 0
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.loaded = np.zeros(1 << 18, np.float32)

    def execute(self, requests):
        answers = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            first = array.flat[0]
            if first == {CRASHES}:
                os._exit(3)
            if first == {RAISES}:
                raise ValueError("as it was told to")
            if first == {FAILS}:
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("as it was asked to")))
                continue
            if first == {SLOW}:
                time.sleep(0.05)
            outputs = [pb_utils.Tensor("OUT", array * 2)]
            answers.append(pb_utils.InferenceResponse(outputs, parameters={{"generation": GENERATION}}))
        return answers
"""

ASKS = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "IN")
        asked = [
            pb_utils.InferenceRequest(model_name=name, requested_output_names=["OUT"], inputs=[given])
            for name in ("steady", "both")
        ]
        found = await asyncio.gather(*(each.async_exec() for each in asked))
        for each in found:
            if each.has_error():
                return pb_utils.InferenceResponse([], pb_utils.TritonError(each.error().message()))
        twice, four = (pb_utils.get_output_tensor_by_name(each, "OUT").as_numpy() for each in found)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", twice + four)])
"""

WORDS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().flat[0])):
                if request.is_cancelled():
                    break
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), number, np.float32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

SUMS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            tensors = {each.name(): each.as_numpy().flat[0] for each in request.inputs()}
            given, start, end, name = (tensors[each] for each in ("IN", "START", "END", "ID"))
            total = given if start else self.sums[name] + given
            if end:
                self.sums.pop(name, None)
            else:
                self.sums[name] = total
                if len(self.sums) > 512:  # of those that their clients have left
                    del self.sums[next(iter(self.sums))]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), total, np.float32))]))
        return answers
"""

_TENSORS = """max_batch_size: 8
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }]
"""

_PYTHON = 'backend: "python"\n' + _TENSORS

_SEQUENCES = f"""sequence_batching {{
  max_sequence_idle_microseconds: {int(IDLE_SECONDS * 1e6)}
  oldest {{ max_candidate_sequences: 64 }}
  control_input [
    {{ name: "START" control [{{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }}] }},
    {{ name: "END" control [{{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }}] }},
    {{ name: "ID" control [{{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }}] }}
  ]
}}
"""

ENSEMBLE = (
    'platform: "ensemble"\n'
    + _TENSORS
    + """ensemble_scheduling { step [
  { model_name: "first" model_version: -1
    input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "twice" } },
  { model_name: "second" model_version: -1
    input_map { key: "IN" value: "twice" } output_map { key: "OUT" value: "OUT" } }
] }
"""
)


def _batched(instances: int, more: str = "") -> str:
    return f"{_PYTHON}dynamic_batching {{ {more} }}\ninstance_group [{{ kind: KIND_CPU count: {instances} }}]\n"


MODELS = {
    "first": (DOUBLES, _batched(2)),
    "second": (DOUBLES, _batched(2)),
    "steady": (DOUBLES, _batched(2)),
    "kept": (DOUBLES, _batched(1) + "response_cache { enable: true }\n"),
    "narrow": (
        DOUBLES,
        _batched(1, f"default_queue_policy {{ max_queue_size: {QUEUE} allow_timeout_override: true }}"),
    ),
    "crashes": (DOUBLES, _batched(1)),
    "comes": (DOUBLES, _batched(1)),
    "asks": (ASKS, _batched(1)),
    "words": (WORDS, _PYTHON + "model_transaction_policy { decoupled: true }\n"),
    "sums": (SUMS, _PYTHON + _SEQUENCES),
}
"""Code and configuration by name. `comes` comes and goes."""


def make_repository(folder: Path) -> None:
    """Write all models."""
    for name, (code, config) in MODELS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(config)
    (folder / "both" / "1").mkdir(parents=True)
    (folder / "both" / "config.pbtxt").write_text(ENSEMBLE)


def write_again(folder: Path, name: str, generation: int) -> None:
    """Write a model's code anew; its answers have the generation as a parameter."""
    code, _ = MODELS[name]
    (folder / name / "1" / "model.py").write_text(code.replace("GENERATION = 0", f"GENERATION = {generation}", 1))
