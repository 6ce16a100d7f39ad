"""What every loader of model files must do."""

import importlib
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load


def run(runtime: Runtime, *outputs: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What a runtime computes; all outputs if none is named. Its arrays are as the protocol says."""
    names = outputs or tuple(spec.name for spec in runtime.outputs)
    return execute(runtime, inputs, *names)


def execute(runtime: Runtime, inputs: Mapping[str, NDArray[Any]], *outputs: str) -> dict[str, NDArray[Any]]:
    """The same, with names that Python's arguments cannot have. The inputs are read-only."""
    frozen = {name: array.copy() for name, array in inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = runtime.execute(frozen, outputs)
    assert list(given) == list(outputs)
    specs = {spec.name: spec for spec in runtime.outputs}
    for name, array in given.items():
        assert isinstance(array, np.ndarray)
        spec = specs[name]
        if spec.datatype is not None:
            assert array.dtype == spec.datatype.dtype, name
        if array.dtype == object:
            assert {type(each) for each in array.ravel()} <= {bytes}
        assert spec.admits(array.shape[1:] if runtime.batches else array.shape), (array.shape, spec)
    return given


def refusal(name: str, path: Path, options: RuntimeOptions | None = None) -> str:
    """The line that says why a model is not loaded."""
    with pytest.raises(ConfigError) as caught:
        load(name, path, options or RuntimeOptions())
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 800
    return message


def damaged(good: Path, folder: Path) -> Iterator[Path]:
    """Files under the name of a good one that no library can load, or only by chance."""
    data = good.read_bytes()
    random.seed(1)
    cut = [data[: len(data) * part // 8] for part in (1, 3, 5, 7)] + [data[:1], data[:16], data[: len(data) - 1]]
    noise = [random.randbytes(size) for size in (1, 64, 5000)]
    scribbled = bytearray(data)
    for _ in range(max(len(data) // 50, 4)):
        scribbled[random.randrange(len(data))] = random.randrange(256)
    other = [b"hello, world\n" * 20, b"{}", b"[1, 2]", b"\0" * 4096, bytes(scribbled)]
    for number, content in enumerate([*cut, *noise, *other]):
        path = folder / f"{number}" / good.name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        yield path


def check_damaged(name: str, good: Path, folder: Path, options: RuntimeOptions | None = None, *, most: int = 0) -> None:
    """Bad files are refused in one line.

    Args:
        most: of them that may load all the same: a model that lacks its end, or has some other number in it, is one.
    """
    loaded = []
    for path in damaged(good, folder):
        try:
            load(name, path, options or RuntimeOptions())
        except ConfigError:
            assert path.name in refusal(name, path, options)
        else:
            loaded.append(path)
    assert len(loaded) <= most, loaded
    empty = folder / good.name
    empty.touch()
    assert refusal(name, empty, options) == f"{empty} is empty"
    assert refusal(name, folder / "none" / good.name, options) == f"{folder / 'none' / good.name} does not exist"
    assert "is a folder" in refusal(name, folder, options)


def everything_is_installed() -> bool:
    """Whether this is `make runtimes`, where nothing is skipped."""
    return "OCTAVO_RUNTIMES" in os.environ


def needs(module: str) -> Any:
    """A library that only `make runtimes` installs: without it, the module's tests are skipped."""
    if everything_is_installed():
        return importlib.import_module(module)
    return pytest.importorskip(module)
