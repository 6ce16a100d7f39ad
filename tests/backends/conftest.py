"""`OCTAVO_NATIVE` names a folder with another build of the native module, say one with sanitizers (`make sanitize`)."""

import importlib.util
import os
import sys
from pathlib import Path

NAME = "octavo.backends.cpu._native"


def _load(folder: Path) -> None:
    (path,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if "OCTAVO_NATIVE" in os.environ:
    _load(Path(os.environ["OCTAVO_NATIVE"]))
