"""The loaders of model files, each by a library that is imported when a model is."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
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
}
"""By the names of `--runtime`."""

_BY_SUFFIX = {suffix: name for name, kind in RUNTIMES.items() for suffix in kind.suffixes}


def runtime_of(path: Path) -> str | None:
    """Which runtime reads a file or folder, by its suffix and its content; None if none does."""
    return _BY_SUFFIX.get(path.suffix.lower())


def load(name: str, path: Path, options: RuntimeOptions) -> Runtime:
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
