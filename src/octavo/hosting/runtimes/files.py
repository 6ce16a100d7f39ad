"""What the loaders of model files share: libraries that may be missing, and errors that fit on a line."""

import importlib
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError

MAX_LINE = 400


def library(module: str, path: Path, extra: str) -> Any:
    """Import what reads a file.

    Args:
        extra: of Octavo's, that installs it.

    Raises:
        ConfigError: it is not installed, or does not work.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise _broken(module, path, error) from error
        name = module.split(".")[0].replace("_", "-")
        missing = f"{name}, which is not installed: pip install 'octavo[{extra}]'"
        raise ConfigError(f"reading {path.name} needs {missing}") from None
    except Exception as error:  # a library that finds another, a driver or a system library unfit raises what it likes
        raise _broken(module, path, error) from error


def _broken(module: str, path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"reading {path.name} needs {module}, which is installed but does not import: {line(error)}")


def line(error: BaseException | str) -> str:
    """What an error of a library says, on one line; its type if it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_LINE else f"{words[:MAX_LINE]}…"


def existing(path: Path) -> Path:
    """A file that is there and has something in it. Raises ConfigError."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a model's file is wanted")
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ConfigError(f"{path} is empty")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return path


def unreadable(path: Path, by: str, error: BaseException | str) -> ConfigError:
    """A file that a library cannot load."""
    return ConfigError(f"{path} cannot be loaded by {by}: {line(error)}")


def untrusted(path: Path, what: str, instead: str) -> ConfigError:
    """What is loaded with --trust-pickle alone."""
    return ConfigError(
        f"{path} {what}: loading it runs whatever code its author put there. If you trust them, give --trust-pickle; "
        f"else {instead}",
        "trust_pickle",
    )
