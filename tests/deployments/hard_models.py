"""Models that hard requests are made to: of a repository, and of somebody's own."""

import shutil
from pathlib import Path

from tests.triton.repository import FOLDERS, MODELS

GATE = """
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.begun = self.told = 0

    def execute(self, requests):
        return [self.passed(each) for each in requests]

    def passed(self, request):
        gate = request.inputs()[0].as_numpy().ravel()[0].decode()
        if gate == "die":
            os._exit(7)
        if gate:
            self.begun += 1
            open(gate + ".begun", "w").close()
            while not os.path.exists(gate) and not request.is_cancelled():
                time.sleep(0.002)
            self.told += request.is_cancelled()
        return pb_utils.InferenceResponse([pb_utils.Tensor("begun", np.array([[self.begun, self.told]], np.int32))])
"""

GATE_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "gate" data_type: TYPE_STRING dims: 1 }
output { name: "begun" data_type: TYPE_INT32 dims: 2 }
dynamic_batching {
  default_queue_policy { default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: 4 }
}
"""

GATES = """
platform: "ensemble"
max_batch_size: 1
input { name: "gate" data_type: TYPE_STRING dims: 1 }
output { name: "begun" data_type: TYPE_INT32 dims: 2 }
ensemble_scheduling {
  step {
    model_name: "texts"
    model_version: -1
    input_map { key: "x" value: "gate" }
    output_map { key: "y" value: "same" }
  }
  step {
    model_name: "gate"
    model_version: -1
    input_map { key: "gate" value: "same" }
    output_map { key: "begun" value: "begun" }
  }
}
"""

SAME = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each.inputs()[0].as_numpy())]) for each in requests]
"""

SAME_CONFIG = """
backend: "python"
max_batch_size: 1
input {{ name: "x" data_type: TYPE_{0} dims: -1 }}
output {{ name: "y" data_type: TYPE_{0} dims: -1 }}
"""

TOLD = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [{each.name(): each.as_numpy().ravel() for each in request.inputs()} for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("told", each["ID"])]) for each in tensors]
"""

TOLD_CONFIG = """
backend: "python"
max_batch_size: 2
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "told" data_type: TYPE_STRING dims: 1 }
sequence_batching {
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }
}
"""

OWN = """
import os
import time
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

import octavo


@octavo.model(name="own_gate", max_batch_size=1)
class Gate:
    def load(self) -> None:
        self.begun = 0

    def predict(self, gate: list[str]) -> list[int]:
        for each in filter(None, gate):
            if each == "die":
                os._exit(7)
            self.begun += 1
            open(each + ".begun", "w").close()
            while not os.path.exists(each):
                time.sleep(0.002)
        return [self.begun] * len(gate)


@octavo.model(name="own_small")
def small(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return x


@octavo.model(name="own_number")
def number(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x


@octavo.model(name="own_failing")
def failing(x: NDArray[np.float32]) -> NDArray[np.float32]:
    raise ValueError("it cannot be")
"""


def write_models(repository: Path) -> None:
    """Those of a repository; one of them is broken."""

    def add(name: str, config: str, code: str = "") -> None:
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
        if code:
            (repository / name / "1" / "model.py").write_text(code)

    add("gate", GATE_CONFIG, GATE)
    add("gates", GATES)
    add("texts", SAME_CONFIG.format("STRING"), SAME)
    add("small", SAME_CONFIG.format("UINT8"), SAME)
    add("number", SAME_CONFIG.format("FP32"), SAME)
    add("told", TOLD_CONFIG, TOLD)
    for name in ("optional", "errors", "repeat"):
        code, config = MODELS[name]
        add(name, f'backend: "python"\n{config}', code)
    for name in ("says", "upper", "says_upper"):
        shutil.copytree(FOLDERS / name, repository / name)
    (repository / "says_upper" / "1").mkdir()
    add("broken", "max_batch_sise: 3\n", SAME)
