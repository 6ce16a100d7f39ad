"""A repository of models with Triton's Python backend, which is the only one that PyTriton's wheel brings."""

import shutil
from pathlib import Path

FOLDERS = Path(__file__).parent / "models"
"""Models that are more than a few lines."""

VARIANTS = {
    "controls_oldest": ("controls", {"direct { }": "oldest { max_candidate_sequences: 4 }", "UINT64": "INT32"}),
    "controls_text": ("controls", {"direct { }": "oldest { max_candidate_sequences: 4 }", "UINT64": "STRING"}),
    "controls_idle": ("controls", {"60000000": "200000"}),
}
"""Models like others, with other words in their configurations."""

IDENTITY = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            tensors = [pb_utils.Tensor("OUT" + each.name()[2:], each.as_numpy()) for each in request.inputs()]
            wanted = set(request.requested_output_names())
            answers.append(pb_utils.InferenceResponse([each for each in tensors if each.name() in wanted]))
        return answers
"""

ADD_SUB = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.dtype = pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, "SUM")["data_type"])

    def execute(self, requests):
        answers = []
        for request in requests:
            a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("A", "B"))
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("SUM", (a + b).astype(self.dtype)), pb_utils.Tensor("DIFF", (a - b).astype(self.dtype))
            ]))
        return answers
"""

OPTIONAL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            given = sorted(each.name() for each in request.inputs())
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("GIVEN", np.array([" ".join(given)], object))]))
        return answers
"""

ERRORS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().flat[0])
            if value == 1:
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("it is one")))
            elif value == 2:
                raise ValueError("it is two")
            elif value == 3:
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("WRONG", np.zeros(1, np.int32))]))
            else:
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([value], np.int32))]))
        return answers
"""

REPEAT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().flat[0])
            for number in range(count):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([number], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

ACCUMULATOR = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            value, start, end, name = (
                pb_utils.get_input_tensor_by_name(request, each).as_numpy().flat[0]
                for each in ("IN", "START", "END", "CORRID")
            )
            total = self.sums[name] = (0 if start else self.sums.get(name, 0)) + value
            if end:
                del self.sums[name]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[total]], np.int32))]))
        return answers
"""

PARAMETERS = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            said = {"id": request.request_id(), "parameters": json.loads(request.parameters())}
            said = json.dumps(said, sort_keys=True)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([said], object))]))
        return answers
"""

COMPLETED = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        auto_complete_model_config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [2]})
        auto_complete_model_config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]})
        auto_complete_model_config.set_max_batch_size(4)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", 2 * pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
            )
            for request in requests
        ]
"""


def tensors(kind: str, *specs: tuple[str, str, str]) -> str:
    written = [f'{{ name: "{name}" data_type: TYPE_{type_} dims: [{dims}] }}' for name, type_, dims in specs]
    return f"{kind} [{', '.join(written)}]"


MODELS = {
    "types": (
        IDENTITY,
        "max_batch_size: 0\n"
        + tensors(
            "input",
            *(
                (f"IN_{each}", each, "-1")
                for each in ("BOOL", "UINT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
            ),
            ("IN_STRING", "STRING", "-1"),
        ).replace(" dims: [-1] }", " dims: [-1] optional: true }")
        + "\n"
        + tensors(
            "output",
            *(
                (f"OUT_{each}", each, "-1")
                for each in ("BOOL", "UINT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
            ),
            ("OUT_STRING", "STRING", "-1"),
        ),
    ),
    "add_sub": (
        ADD_SUB,
        "max_batch_size: 8\ndynamic_batching { }\n"
        + tensors("input", ("A", "FP32", "4"), ("B", "FP32", "4"))
        + "\n"
        + tensors("output", ("SUM", "FP32", "4"), ("DIFF", "FP32", "4")),
    ),
    "optional": (
        OPTIONAL,
        'input [{ name: "NEEDED" data_type: TYPE_INT32 dims: [1] }, '
        '{ name: "MORE" data_type: TYPE_INT32 dims: [1] optional: true }]\n'
        + tensors("output", ("GIVEN", "STRING", "1")),
    ),
    "errors": (ERRORS, tensors("input", ("IN", "INT32", "1")) + "\n" + tensors("output", ("OUT", "INT32", "1"))),
    "repeat": (
        REPEAT,
        "model_transaction_policy { decoupled: true }\n"
        + tensors("input", ("IN", "INT32", "1"))
        + "\n"
        + tensors("output", ("OUT", "INT32", "1")),
    ),
    "accumulator": (
        ACCUMULATOR,
        "max_batch_size: 4\nsequence_batching { max_sequence_idle_microseconds: 60000000 control_input [\n"
        '{ name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },\n'
        '{ name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }] },\n'
        '{ name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }] }\n'
        + tensors("input", ("IN", "INT32", "1"))
        + "\n"
        + tensors("output", ("OUT", "INT32", "1")),
    ),
    "parameters": (
        PARAMETERS,
        tensors("input", ("IN", "INT32", "1")) + "\n" + tensors("output", ("SAID", "STRING", "1")),
    ),
    "completed": (COMPLETED, ""),
    "labelled": (
        IDENTITY,
        tensors("input", ("IN", "FP32", "4"))
        + '\noutput [{ name: "OUT" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]',
    ),
}

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "X" data_type: TYPE_FP32 dims: [4] }, { name: "Y" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "RESULT" data_type: TYPE_FP32 dims: [4] }]
ensemble_scheduling { step [
  { model_name: "add_sub" model_version: -1 input_map { key: "A" value: "X" } input_map { key: "B" value: "Y" }
    output_map { key: "SUM" value: "sum" } output_map { key: "DIFF" value: "difference" } },
  { model_name: "add_sub" model_version: -1 input_map { key: "A" value: "sum" }
    input_map { key: "B" value: "difference" } output_map { key: "SUM" value: "RESULT" } }
] }
"""


LABELLED = """
platform: "ensemble"
input [{ name: "X" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [4] LABELS }]
ensemble_scheduling { step [
  { model_name: "labelled" model_version: -1 input_map { key: "IN" value: "X" } output_map { key: "OUT" value: "Y" } }
] }
"""


def make_repository(folder: Path) -> Path:
    """Write it."""
    shutil.copytree(FOLDERS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("says_upper", "slow_twice"):
        (folder / name / "1").mkdir()
    for name, (like, changes) in VARIANTS.items():
        shutil.copytree(folder / like, folder / name)
        config = folder / name / "config.pbtxt"
        text = config.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        config.write_text(text)
    for name, (code, config) in MODELS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(code)
        if config:
            (folder / name / "config.pbtxt").write_text(f'backend: "python"\n{config}\n')
    (folder / "labelled" / "labels.txt").write_text("zero\none\ntwo\nthree\n")
    for name, config in (
        ("ensemble", ENSEMBLE),
        ("inherits", LABELLED.replace("LABELS", "")),
        ("names", LABELLED.replace("LABELS", 'label_filename: "labels.txt"')),
    ):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
    (folder / "names" / "labels.txt").write_text("red\n\nblue\n")
    for number in (1, 2, 3):
        version = folder / "versions" / str(number)
        version.mkdir(parents=True)
        (version / "model.py").write_text(ADD_SUB.replace("(a + b)", f"(a + b + {number})"))
    (folder / "versions" / "config.pbtxt").write_text(
        f'backend: "python"\nversion_policy {{ specific {{ versions: [1, 3] }} }}\n{MODELS["add_sub"][1]}\n'
    )
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "model.py").write_text("raise ValueError('it cannot be imported')\n")
    (folder / "broken" / "config.pbtxt").write_text(f'backend: "python"\n{MODELS["errors"][1]}\n')
    return folder
