"""Execution environments: the Python that a model's code runs in, if its configuration names one.

The process of the model becomes one of that Python. It needs of Octavo what a model's process has, and for that numpy
and msgspec: where its version is that of the Python that Octavo runs in, those of the latter do, too.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import octavo
from octavo.errors import ConfigError

PARAMETER = "EXECUTION_ENV_PATH"
FOLDER = "$$TRITON_MODEL_DIRECTORY"
"""In a path, for the model's folder."""

OLDEST = (3, 11)

_INSIDE = "OCTAVO_EXECUTION_ENVIRONMENT"
"""A variable: the environment that a process has become one of."""

_BOOT = """
import importlib.util, json, os, sys
try:
    sys.path += json.loads(os.environ.pop("OCTAVO_LAST_PATH"))
    place = os.environ.pop("OCTAVO_PLACE")
    spec = importlib.util.spec_from_file_location("octavo", place + "/__init__.py", submodule_search_locations=[place])
    sys.modules["octavo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["octavo"])
    from octavo.hosting.process import main
except ImportError as error:
    why = f"the execution environment {sys.prefix} cannot run the model: {error}; it must have numpy and msgspec"
    os.write(1, json.dumps({"type": "failed", "message": why}).encode() + b"\\n")
    sys.exit(1)
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python.

    Attributes:
        folder: that it is in. version: of it.
    """

    folder: Path
    version: tuple[int, int]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def command(self, arguments: list[str]) -> list[str]:
        """What runs a model's process in it, with these arguments."""
        return [str(self.python), "-c", _BOOT, *arguments]

    def variables(self) -> dict[str, str]:
        """What is set for such a process."""
        same = self.version == sys.version_info[:2]
        binaries = self.folder / "bin"
        found = {
            **os.environ,
            _INSIDE: str(self.folder),
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONNOUSERSITE": "True",
            "OCTAVO_PLACE": str(Path(octavo.__file__).parent),
            "OCTAVO_LAST_PATH": json.dumps([each for each in sys.path if "site-packages" in each] if same else []),
        }
        found.pop("PYTHONHOME", None)
        found.pop("PYTHONPATH", None)
        kind = "CONDA_PREFIX" if (self.folder / "conda-meta").is_dir() else "VIRTUAL_ENV"
        return {**found, kind: str(self.folder)}


def environment_of(config: Mapping[str, Any], folder: str) -> Environment | None:
    """The environment that a configuration names, if this process is not one of it already.

    Args:
        folder: of the model.

    Raises:
        ConfigError: there is none, or none that can be used.
    """
    path = config.get("parameters", {}).get(PARAMETER, {}).get("string_value", "")
    if not path or _INSIDE in os.environ:
        return None
    place = Path(path.replace(FOLDER, folder)).expanduser()
    if FOLDER in path and not place.resolve().is_relative_to(Path(folder).resolve()):
        raise ConfigError(f"{PARAMETER} is {path}, which is not in the model's folder")
    if not place.exists():
        raise ConfigError(f"{PARAMETER} is {path}, and there is no {place}")
    unpacked = place if place.is_dir() else _unpack(place)
    return Environment(unpacked, _version(unpacked))


def _version(folder: Path) -> tuple[int, int]:
    """Raises ConfigError: it is no environment, or of a version that does not do."""
    python = folder / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ConfigError(f"{PARAMETER}: {folder} is no environment of Python: it has no bin/python that runs")
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        major, minor = map(int, found.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"{PARAMETER}: {python} does not run: {error}") from None
    if (major, minor) < OLDEST:
        raise ConfigError(
            f"{PARAMETER}: {folder} has Python {major}.{minor}, and models need {'.'.join(map(str, OLDEST))} or newer; "
            f"this server has {sys.version_info[0]}.{sys.version_info[1]}"
        )
    return major, minor


def _unpack(archive: Path) -> Path:
    """An archive's content, unpacked once for all models. Raises ConfigError: it cannot be."""
    stat = archive.stat()
    name = hashlib.sha256(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "octavo" / "environments"
    folder = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the model want it, too
            if not folder.exists():
                _extract(archive, folder)
    except (OSError, tarfile.TarError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{PARAMETER}: {archive} cannot be unpacked: {error}") from None
    return folder


def _extract(archive: Path, folder: Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(unfinished, filter="tar")
    unfinished.rename(folder)
    fix = folder / "bin" / "conda-unpack"  # of conda-pack: paths within it are those of another machine
    if fix.exists():
        python = str(folder / "bin" / "python")
        subprocess.run([python, str(fix)], check=True, capture_output=True, timeout=600)
