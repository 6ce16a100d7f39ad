"""`OCTAVO_NATIVE` names a folder with another build of the native module, say one with sanitizers (`make sanitize`)."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def unchecked_weights() -> Iterator[None]:
    """Weights that are not finite load. They stand for finite ones whose products overflow: loading cannot see that."""
    from octavo.weights.tensor import Tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "is_finite", lambda tensor: True)
        yield
