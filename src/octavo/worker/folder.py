"""Folders for the sockets of a server: private, and swept when their owner is gone."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from octavo.errors import ConfigError

PREFIX = "octavo-run-"

MAX_PATH = 90
"""A Unix socket's path has at most 107 bytes, on some systems 103."""


class PrivateFolder:
    """A new folder that only this user can enter, with a path that leaves room for a socket's name.

    It is locked as long as this process lives. Folders whose lock nobody holds were left by processes that were killed;
    making a new one removes them.

    Raises:
        ConfigError: no folder can be made.
    """

    def __init__(self) -> None:
        try:
            self.path, self._lock = _locked_folder()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"cannot make a temporary folder: {reason}; TMPDIR names another place") from error
        for parent in {self.path.parent, Path(tempfile.gettempdir())}:
            _sweep(parent)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked_folder() -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if len(str(path)) > MAX_PATH:
            path.rmdir()
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nobody can tell whose the folder is, so it is never swept
            os.close(lock)
            return path, None
        if _is_at(lock, path):
            return path, lock
        os.close(lock)  # somebody swept it before it was locked


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, or gone meanwhile
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, path):
            shutil.rmtree(path)
    finally:
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
