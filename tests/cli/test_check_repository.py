"""`octavo check-repository`: every model, with all that is wrong with it, and nothing started."""

from pathlib import Path

import pytest

from tests.cli.command import octavo, one_line
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model

PYTHON = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""


def checked(repository: Path, *flags: str) -> tuple[int, dict[str, list[str]]]:
    """The exit status, and for each model what is said of it."""
    result = octavo("check-repository", str(repository), *flags)
    models: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if not line.startswith(" "):
            name, _, verdict = line.partition(" ")
            models[name] = [verdict.strip()]
        else:
            models[name].append(line.strip())
    return result.returncode, models


def write_python(repository: Path, name: str, code: str) -> None:
    folder = write_model(repository, name, 'backend: "python"')
    (folder / "1").mkdir()
    (folder / "1" / "model.py").write_text(code)


def test_what_works_is_said(tmp_path: Path) -> None:
    write_model(tmp_path, "auto", v1=onnx_scale())
    write_model(tmp_path, "scale", SCALE + "version_policy { all {} }", v1=onnx_scale(), v3=onnx_scale())
    write_python(tmp_path, "python", PYTHON)
    status, models = checked(tmp_path)
    assert status == 0
    assert models["auto"] == [
        "can be served (onnxruntime; version 1)",
        "* inputs and outputs are taken from the model when it is loaded",
    ]
    assert models["scale"] == ["can be served (onnxruntime; version 3, 1)"]
    assert models["python"][0] == "can be served (python; version 1)"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("max_batch_sise: 3", ["bad/config.pbtxt, line 1: max_batch_sise: there is no such field"]),
        (SCALE + "batch_input {} batch_output {}", ["batch_input is not supported", "batch_output is not supported"]),
        (SCALE.replace("onnxruntime", "fil"), ["backend is 'fil', which is not supported"]),
        (SCALE.replace('"y"', '"y" label_filename: "no.txt"'), ["no.txt: No such file or directory"]),
        (SCALE.replace('"y"', '"y" label_filename: "../good/1/model.onnx"'), ["which is not in the model's folder"]),
        (SCALE.replace("onnxruntime", "openvino"), ["there is no file"]),
        (
            SCALE + 'model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 input_data_file: "z" } } }',
            ["warmup/z (input_data_file)"],
        ),
        (
            SCALE.replace('backend: "onnxruntime"', 'platform: "ensemble"')
            + 'ensemble_scheduling { step { model_name: "none" model_version: -1 '
            'input_map { key: "a" value: "x" } output_map { key: "b" value: "y" } } }',
            ["its step 'none' is no model of the repository"],
        ),
    ],
)
def test_all_that_is_wrong_is_said(tmp_path: Path, config: str, said: list[str]) -> None:
    write_model(tmp_path, "bad", config, v1=onnx_scale())
    write_model(tmp_path, "good", SCALE, v1=onnx_scale())
    status, models = checked(tmp_path)
    assert status == 1
    assert models["bad"][0].startswith("cannot be served")
    for each in said:
        assert any(each in line for line in models["bad"][1:])
    assert models["good"] == ["can be served (onnxruntime; version 1)"]


@pytest.mark.parametrize(
    ("code", "said"),
    [("class Other: pass", "has no class TritonPythonModel"), ("def (", "is no Python that can be read: ")],
)
def test_code_is_read_but_not_run(tmp_path: Path, code: str, said: str) -> None:
    write_python(tmp_path, "python", code)
    status, models = checked(tmp_path)
    assert status == 1
    assert said in models["python"][1]


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "scale",
        SCALE + "optimization { cuda { graphs: true } } response_cache { enable: true }"
        'instance_group { rate_limiter { resources { name: "R" count: 1 } } }',
        v1=onnx_scale(),
    )
    status, models = checked(tmp_path)
    assert status == 0
    assert models["scale"][1:] == [
        "* optimization.cuda has no effect: it changes no answer",
        "* rate_limiter needs --rate-limit execution_count, and has no effect without it, as in Triton",
        "* response_cache needs --cache-config local,size=BYTES, and has no effect without it, as in Triton",
    ]


def test_strict(tmp_path: Path) -> None:
    write_model(tmp_path, "auto", v1=onnx_scale())
    status, models = checked(tmp_path, "--disable-auto-complete-config")
    assert status == 1
    assert "there is no auto/config.pbtxt" in models["auto"][1]


def test_a_repository_that_is_none(tmp_path: Path) -> None:
    assert "is no folder" in one_line(octavo("check-repository", str(tmp_path / "none")))
