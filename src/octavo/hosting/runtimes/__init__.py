"""The loaders of model files, each by a library that is imported when a model is."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import ConfigError

if TYPE_CHECKING:  # with numpy, which whoever only asks what a file is need not load
    from octavo.hosting.runtime import Loader, Runtime, RuntimeOptions


@dataclass(frozen=True, slots=True)
class Kind:
    """A runtime.

    Attributes:
        module, loader: where its loader is.
        extra: of Octavo's, that installs what it needs.
        suffixes: of the files that it reads, unless their content says otherwise.
    """

    module: str
    loader: str
    extra: str
    suffixes: tuple[str, ...]


RUNTIMES = {
    "onnx": Kind("onnx", "OnnxRuntime", "onnx", (".onnx", ".ort")),
    "torch": Kind("pytorch", "load_torch", "torch", (".pt", ".pth", ".pt2", ".jit", ".ts", ".safetensors")),
    "tensorflow": Kind("tensorflow", "TensorflowRuntime", "tensorflow", ()),
    "tflite": Kind("tflite", "TfliteRuntime", "tflite", (".tflite",)),
    "openvino": Kind("openvino", "OpenvinoRuntime", "openvino", ()),
    "tensorrt": Kind("tensorrt", "TensorrtRuntime", "tensorrt", (".plan", ".engine", ".trt")),
    "transformers": Kind("huggingface", "TransformersRuntime", "transformers", ()),
    "sklearn": Kind("sklearn", "SklearnRuntime", "sklearn", (".skops", ".joblib", ".pkl", ".pickle")),
    "xgboost": Kind("xgboost", "XgboostRuntime", "xgboost", (".ubj",)),
    "lightgbm": Kind("lightgbm", "LightgbmRuntime", "lightgbm", (".lgb",)),
}
"""By the names of `--runtime`."""

SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
"""What is in a folder that TensorFlow saved a model to."""

_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForImageClassification",
    "ForObjectDetection",
    "ForSemanticSegmentation",
    "ForDepthEstimation",
    "ForAudioFrameClassification",
    "ForCTC",
)
"""How classes of transformers' models end that pipelines are for."""

_BY_SUFFIX = {suffix: name for name, kind in RUNTIMES.items() for suffix in kind.suffixes}


def runtime_of(path: Path) -> str | None:
    """Which runtime reads a file or folder, by its suffix and its content; None if none does."""
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED_MODEL):
            return "tensorflow"
        return "transformers" if _has_pipeline(path) else None
    if path.name in SAVED_MODEL:
        return "tensorflow"
    return _BY_SUFFIX.get(path.suffix.lower()) or _by_content(path)


def _has_pipeline(folder: Path) -> bool:
    """Whether a model of transformers is there that is for a pipeline, and no language model."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return any(each.endswith(_HEADS) for each in config["architectures"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _by_content(path: Path) -> str | None:
    """For files whose suffix says little."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).lstrip()
    except OSError:
        return None
    if head.startswith(b"{") and b"learner" in head:
        return "xgboost"
    if path.suffix.lower() == ".xml" and b"<net" in head:
        return "openvino"
    return "lightgbm" if head.startswith(b"tree\n") else None


def load(name: str, path: Path, options: "RuntimeOptions") -> "Runtime":
    """Load a model.

    Args:
        name: of the runtime.

    Raises:
        ConfigError: no such runtime; the file is no such model, cannot be loaded, or needs an extra that is missing.
    """
    kind = RUNTIMES.get(name)
    if kind is None:
        raise ConfigError(f"there is no runtime '{name}'; there are {', '.join(RUNTIMES)}", "runtime")
    loader: Loader = getattr(importlib.import_module(f"{__name__}.{kind.module}"), kind.loader)
    return loader(path, options)
