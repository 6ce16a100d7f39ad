"""Which runtime reads a file, and what is said if its library is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from octavo.hosting.runtimes import RUNTIMES, runtime_of
from tests.hosting.runtimes.checks import refusal

REPOSITORY = Path(__file__).parents[3]

FILES = {
    "onnx": ("model.onnx", b"x", "onnxruntime"),
    "torch": ("model.safetensors", b"x", "torch"),
    "tensorflow": ("saved_model.pb", b"x", "tensorflow"),
    "tflite": ("model.tflite", b"x", "ai_edge_litert"),
    "openvino": ("model.onnx", b"x", "openvino"),
    "tensorrt": ("model.plan", b"x", "tensorrt"),
    "transformers": ("model", b"x", "transformers"),
    "sklearn": ("model.skops", b"x", "sklearn"),
    "xgboost": ("model.ubj", b"x", "xgboost"),
    "lightgbm": ("model.txt", b"tree\nversion=v4\n\nend of trees\nend of parameters\n", "lightgbm"),
}
"""A file that each of them would read, and the library that it does that with."""


@pytest.mark.parametrize(
    ("name", "content", "runtime"),
    [
        ("a.onnx", b"", "onnx"),
        ("a.ONNX", b"", "onnx"),
        ("a.ort", b"", "onnx"),
        ("a.pt", b"", "torch"),
        ("a.pth", b"", "torch"),
        ("a.pt2", b"", "torch"),
        ("a.safetensors", b"", "torch"),
        ("a.tflite", b"", "tflite"),
        ("saved_model.pb", b"", "tensorflow"),
        ("a.xml", b'<?xml version="1.0"?>\n<net name="m">', "openvino"),
        ("a.xml", b"<html>", None),
        ("a.plan", b"", "tensorrt"),
        ("a.engine", b"", "tensorrt"),
        ("a.skops", b"", "sklearn"),
        ("a.joblib", b"", "sklearn"),
        ("a.pkl", b"", "sklearn"),
        ("a.ubj", b"", "xgboost"),
        ("a.json", b'{"learner":{}}', "xgboost"),
        ("a.bst", b"{L\0\0\0\0\0\0\0\7learner{", "xgboost"),
        ("a.json", b'{"model": 1}', None),
        ("a.txt", b"tree\nversion=v4\n", "lightgbm"),
        ("a.txt", b"trees are green\n", None),
        ("a", b"", None),
        ("a.py", b"", None),
        ("a.gguf", b"GGUF", None),
    ],
)
def test_what_reads_a_file(tmp_path: Path, name: str, content: bytes, runtime: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    assert runtime_of(tmp_path / name) == runtime


def test_what_reads_a_folder(tmp_path: Path) -> None:
    assert runtime_of(tmp_path) is None
    assert runtime_of(tmp_path / "none") is None
    for config in ("{", "[]", '{"architectures": null}', '{"architectures": ["LlamaForCausalLM"]}'):
        (tmp_path / "config.json").write_text(config)
        assert runtime_of(tmp_path) is None
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    assert runtime_of(tmp_path) == "transformers"
    (tmp_path / "saved_model.pb").touch()
    assert runtime_of(tmp_path) == "tensorflow"


@pytest.mark.parametrize("name", FILES)
def test_a_library_that_is_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, content, module = FILES[name]
    (tmp_path / file).write_bytes(content)
    for loaded in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    library = f"{module.replace('_', '-')}, which is not installed: pip install 'octavo[{RUNTIMES[name].extra}]'"
    assert refusal(name, tmp_path / file) == f"reading {file} needs {library}"


def test_a_library_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "onnxruntime.py").write_text("import ctypes\nctypes.CDLL('libnone.so.1')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    message = refusal("onnx", tmp_path / "model.onnx")
    assert message.startswith(
        "reading model.onnx needs onnxruntime, which is installed but does not import: libnone.so.1"
    )
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    (tmp_path / "onnxruntime.py").write_text("import a_module_that_nobody_has")
    assert "does not import: No module named 'a_module_that_nobody_has'" in refusal("onnx", tmp_path / "model.onnx")


def test_an_unknown_runtime(tmp_path: Path) -> None:
    assert refusal("caffe", tmp_path).startswith("there is no runtime 'caffe'; there are onnx, torch, ")


def test_no_library_is_imported_before_a_model_is_loaded() -> None:
    modules = [f"octavo.hosting.runtimes.{kind.module}" for kind in RUNTIMES.values()]
    libraries = {module for *_, module in FILES.values()}
    code = f"import sys, {', '.join(modules)}; print([each for each in {libraries} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_runtime_has_an_extra_and_is_tested() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {kind.extra for kind in RUNTIMES.values()}
    assert extras <= project["optional-dependencies"].keys()
    tested = re.search(r"^EXTRAS := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert tested is not None
    assert extras - set(tested[1].split()) == {"tensorrt"}, "which needs a GPU"
    assert RUNTIMES.keys() == FILES.keys()
