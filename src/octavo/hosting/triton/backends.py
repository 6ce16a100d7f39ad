"""What computes a model: Triton's platforms and backends, their files, and the runtimes that stand for them here."""

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.hosting.config import ENSEMBLE
from octavo.hosting.triton import Config
from octavo.hosting.triton.layout import ModelFolder

PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Backend:
    """One of Triton's.

    Attributes:
        platforms: that it goes by, the usual one first; none if it has none.
        files: that it is known by, the usual one first.
        runtime: of Octavo's.
    """

    name: str
    platforms: tuple[str, ...]
    files: tuple[str, ...]
    runtime: str


BACKENDS = (
    Backend("tensorflow", ("tensorflow_savedmodel", "tensorflow_graphdef"), ("model.savedmodel",), "tensorflow"),
    Backend("tensorrt", ("tensorrt_plan",), ("model.plan",), "tensorrt"),
    Backend("onnxruntime", ("onnxruntime_onnx",), ("model.onnx",), "onnx"),
    Backend("openvino", (), ("model.xml",), "openvino"),
    Backend("pytorch", ("pytorch_libtorch", "libtorch", "torch_aoti"), ("model.pt", "model.pt2"), "torch"),
    Backend(PYTHON, (), ("model.py",), "triton_python"),
)
"""In the order in which they are looked for."""

_BY_NAME = {each.name: each for each in BACKENDS}
_BY_PLATFORM = {platform: each for each in BACKENDS for platform in each.platforms}
_BY_FILE = {file: each for each in BACKENDS for file in each.files}
_PLATFORM_OF_FILE = {"model.pt": "pytorch_libtorch", "model.pt2": "torch_aoti"}
_GRAPHDEF = ("tensorflow_graphdef", "model.graphdef")


def complete_backend(config: Config, folder: ModelFolder) -> None:
    """Write what a configuration leaves open of name, platform, backend and default_model_filename, as the files say.

    Raises:
        ConfigError: nothing says what computes the model, or nothing here does.
    """
    config.name = config.name or folder.name
    if config.name != folder.name:
        raise ConfigError(
            f"unexpected directory name '{folder.name}' for model '{config.name}', directory name must equal model name"
        )
    if config.platform == ENSEMBLE or config.WhichOneof("scheduling_choice") == "ensemble_scheduling":
        _require_ensemble(config)
        return
    backend = _backend_of(config, folder)
    config.backend = backend.name
    if backend.platforms and not config.platform:
        config.platform = _PLATFORM_OF_FILE.get(_file_of(config, folder, backend), backend.platforms[0])
    if config.platform and config.platform not in backend.platforms:
        raise ConfigError(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")
    if not config.default_model_filename:
        config.default_model_filename = _file_of(config, folder, backend)


def backend_named(name: str) -> Backend:
    """A backend that a completed configuration names."""
    return _BY_NAME[name]


def model_file(config: Config, version: Path) -> Path:
    """The file or folder of one version, as a completed configuration names it. Raises ConfigError: it is not there."""
    path: Path = version / config.default_model_filename
    if not path.resolve().is_relative_to(version.resolve()):
        raise ConfigError(
            f"default_model_filename is '{config.default_model_filename:.200}', which is not in the version's folder"
        )
    if config.backend == "onnxruntime" and path.is_dir():  # a large model with its weights beside it
        path /= "model.onnx"
    if not path.exists():
        there = sorted(each.name for each in version.iterdir()) if version.is_dir() else []
        raise ConfigError(
            f"there is no file {path}; the folder has {', '.join(there)[:200] if there else 'nothing'}, and "
            "default_model_filename may name another one"
        )
    return path


def _require_ensemble(config: Config) -> None:
    if config.backend:
        raise ConfigError(f"Ensemble model '{config.name}' must have platform type 'ensemble' and empty backend type")
    if config.platform != ENSEMBLE:
        raise ConfigError(
            f"ensemble scheduling cannot be set for model '{config.name}' whose platform is not {ENSEMBLE}"
        )
    if config.WhichOneof("scheduling_choice") != "ensemble_scheduling":
        raise ConfigError(f"ensemble scheduling must be set for ensemble {config.name} whose platform is {ENSEMBLE}")


def _backend_of(config: Config, folder: ModelFolder) -> Backend:
    if config.platform == _GRAPHDEF[0] or config.default_model_filename == _GRAPHDEF[1]:
        raise ConfigError("platform is tensorflow_graphdef, which is not supported: save the model as a SavedModel")
    if config.backend:
        if config.backend in _BY_NAME:
            return _BY_NAME[config.backend]
        raise ConfigError(f"backend is '{config.backend:.100}', which is not supported; use {_known()}")
    if config.platform:
        if config.platform in _BY_PLATFORM:
            return _BY_PLATFORM[config.platform]
        raise ConfigError(
            f"unexpected platform type '{config.platform:.100}' for {config.name}; use {', '.join(_BY_PLATFORM)}, "
            f'{ENSEMBLE}, or backend: "python"'
        )
    if config.default_model_filename:
        if config.default_model_filename in _BY_FILE:
            return _BY_FILE[config.default_model_filename]
        raise ConfigError(
            f"default_model_filename is '{config.default_model_filename:.200}', and nothing says what reads it: "
            f"backend must be {_known()}"
        )
    for version in sorted(folder.versions()):
        for backend in BACKENDS:
            if any((folder.version(version) / file).exists() for file in backend.files):
                return backend
    raise ConfigError(
        f"Could not determine backend for model '{folder.name}' with no backend in model configuration: {folder} has "
        f"no version with {', '.join(_BY_FILE)}"
    )


def _known() -> str:
    return ", ".join(_BY_NAME)


def _file_of(config: Config, folder: ModelFolder, backend: Backend) -> str:
    """The file of a version: what is written, what is there, or what is usual."""
    if config.default_model_filename:
        return str(config.default_model_filename)
    if config.platform == "torch_aoti":
        return "model.pt2"
    if config.platform:
        return backend.files[0]
    for version in folder.versions():
        for file in backend.files:
            if (folder.version(version) / file).exists():
                return file
    return backend.files[0]
