"""Repositories of models with Triton's Python backend, for Triton and for Octavo."""

import shutil
from pathlib import Path

MODELS = Path(__file__).with_name("models")
UNBATCHED = "_alone"
"""How the names of models end that compute one request at a time."""

MANY = 50
"""Models of the repository "many"."""

_STEP = """{{ model_name: "{model}" model_version: -1
    input_map {{ key: "x" value: "{given}" }} output_map {{ key: "output" value: "{result}" }} }}"""

_CONTROLS = """sequence_batching { max_sequence_idle_microseconds: 60000000 control_input [
  { name: "start" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
  { name: "id" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }] }
"""


def write_repository(folder: Path, model: str, onnx: Path | None = None) -> None:
    """Write the models that requests of one need: an ensemble has three steps, "many" is a lot of small ones.

    Args:
        onnx: the file of models that are one, where there is a backend for such; otherwise Python code runs it.
    """
    if model in ("ensemble", "ensemble_onnx"):
        for name in ("one", "two", "three"):
            if onnx is not None:
                _write_onnx(folder, name, onnx)
            else:
                _write(folder, name, "mlp" if model == "ensemble_onnx" else "identity")
        steps = [("one", "x", "first"), ("two", "first", "second"), ("three", "second", "output")]
        written = ",\n  ".join(_STEP.format(model=name, given=given, result=result) for name, given, result in steps)
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(
            f'platform: "ensemble"\n{_tensors(32)}ensemble_scheduling {{ step [\n  {written}\n] }}\n'
        )
    elif model == "many":
        for number in range(MANY):
            _write(folder, f"identity{number}", "identity")
    else:
        _write(folder, model, model.removesuffix(UNBATCHED))


def _write(folder: Path, name: str, kind: str) -> None:
    code = folder / name / "1" / "model.py"
    code.parent.mkdir(parents=True)
    shutil.copy(MODELS / "triton" / f"{kind}.py", code)
    batching = _CONTROLS if kind == "accumulator" else "" if name.endswith(UNBATCHED) else "dynamic_batching {}\n"
    most = {"sleeper": 8, "accumulator": 64}.get(kind, 32)
    (code.parent.parent / "config.pbtxt").write_text(
        f'backend: "python"\n{_tensors(most)}instance_group [{{ kind: KIND_CPU }}]\n{batching}'
    )


def _write_onnx(folder: Path, name: str, file: Path) -> None:
    (folder / name / "1").mkdir(parents=True)
    shutil.copy(file, folder / name / "1" / "model.onnx")
    (folder / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{_tensors(32, 16)}dynamic_batching {{}}\n')


def _tensors(most: int, width: int = -1) -> str:
    return (
        f"max_batch_size: {most}\n"
        f'input [{{ name: "x" data_type: TYPE_FP32 dims: [{width}] }}]\n'
        f'output [{{ name: "output" data_type: TYPE_FP32 dims: [{width}] }}]\n'
    )
