"""The folders of a repository: its models, their versions, and the files of each.

<repository>/<model>/config.pbtxt
<repository>/<model>/<version>/<file>
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.hosting.triton import Config

log = logging.getLogger(__name__)

CONFIG_FILE = "config.pbtxt"
CONFIGS_FOLDER = "configs"
WARMUP_FOLDER = "warmup"
STATE_FOLDER = "initial_state"

_NO_VERSIONS = frozenset({CONFIGS_FOLDER, WARMUP_FOLDER, STATE_FOLDER})

MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model of a repository, as its folder is. Attributes: name: the folder's."""

    name: str
    path: Path

    def config_file(self, config_name: str = "") -> Path:
        """Where its configuration is: of that name among `configs` if there is one, else the usual one."""
        special = self.path / CONFIGS_FOLDER / f"{config_name}.pbtxt"
        return special if config_name and special.is_file() else self.path / CONFIG_FILE

    def versions(self) -> list[int]:
        """The numbers of its versions, the highest first."""
        found = []
        for entry in _folders(self.path):
            if entry in _NO_VERSIONS or entry.startswith((".", "__")):
                continue
            if not (entry.isascii() and entry.isdigit()) or (len(entry) > 1 and entry[0] == "0"):
                log.warning("%s: the folder %s is no version: versions are numbers without zeros in front", self, entry)
                continue
            found.append(int(entry))
        return sorted(found, reverse=True)

    def version(self, number: int) -> Path:
        """The folder of a version."""
        return self.path / str(number)

    def stamps(self) -> Mapping[str, int]:
        """All of its files, each with when it was written last; what Python writes beside code is no change."""
        found = {}
        for root, folders, files in os.walk(self.path):
            folders[:] = [each for each in folders if each != "__pycache__"]
            for each in files:
                file = os.path.join(root, each)
                found[os.path.relpath(file, self.path)] = _written(file)
        return found

    def __str__(self) -> str:
        return str(self.path)


def models_of(repositories: Sequence[Path]) -> tuple[dict[str, ModelFolder], list[str]]:
    """The models of all repositories by name, and the names that are in two of them, which are none's.

    Raises:
        ConfigError: a repository cannot be read.
    """
    found: dict[str, ModelFolder] = {}
    twice: list[str] = []
    for repository in repositories:
        for name in sorted(_folders(repository)):
            if name.startswith("."):
                continue
            if name in found:
                twice.append(name)
            found[name] = ModelFolder(name, repository / name)
    return {name: folder for name, folder in found.items() if name not in twice}, twice


def find_model(repositories: Sequence[Path], name: str) -> ModelFolder | None:
    """The model of a name. Raises ConfigError: there are two, or it cannot be a model's name."""
    require_model_name(name)
    places = [each / name for each in repositories if (each / name).is_dir()]
    if len(places) > 1:
        raise ConfigError(f"failed to poll model '{name}': not unique across all model repositories")
    return ModelFolder(name, places[0]) if places else None


def require_model_name(name: str) -> None:
    """Raises ConfigError: no model can be called so."""
    if not name.strip():
        raise ConfigError("Model name cannot be empty. Please enter a valid name to deploy.")
    if name.strip() in (".", "..") or "/" in name or "\0" in name:
        raise ConfigError(
            f"invalid model name '{name:.{MAX_NAME}}', model name must not contain path traversal characters"
        )
    if (size := len(name.encode(errors="replace"))) >= MAX_NAME:
        raise ConfigError(f"a model name of {size} bytes, more than the {MAX_NAME - 1} that a folder's may have")
    if not name.isprintable():
        raise ConfigError(f"invalid model name {name!r}, model name must not contain control characters")


def chosen_versions(folder: ModelFolder, config: Config) -> list[int]:
    """The versions that a configuration's version_policy serves, the highest first.

    Raises:
        ConfigError: there is none.
    """
    there = folder.versions()
    policy = config.version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        for version in policy.specific.versions:
            if version not in there:
                log.error("%s: version_policy names version %d, and there is no such folder", folder, version)
        chosen = [version for version in there if version in policy.specific.versions]
    elif policy.WhichOneof("policy_choice") == "all":
        chosen = there
    else:
        chosen = there[: policy.latest.num_versions or 1]
    if not chosen:
        raise ConfigError(
            f"at least one version must be available under the version policy of model '{folder.name}': {folder} has "
            + (f"{', '.join(map(str, there))}" if there else "no folder that is called as a version, such as 1")
        )
    return chosen


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda each: each.name)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from None


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _written(file: str) -> int:
    """When a file was written last, in nanoseconds; 0 if it is just being replaced."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0
