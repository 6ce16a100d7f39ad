"""Triton's system shared memory extension: tensors in regions that clients on this machine have made (`shm_open`).

What is in a region is read and written as in a file and never mapped: a client that shortens it meanwhile gets an
error, and cannot kill the server with it.
"""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.tensors import Buffer

FOLDER = Path("/dev/shm")
"""Where Linux has what `shm_open` opens."""

MAX_REGIONS = 1024
"""Each is an open file."""

MAX_KEY = 255

MAX_BYTES = 2**63 - 1

RESERVED = ("octavo", "triton_python_backend_shm_region_")
"""How the keys of our own begin, and of Triton's."""

DISABLED = (
    "Client-side shared memory is disabled. To enable shared memory from clients, start the server with the flag "
    "--allow-client-shm"
)


class _Region:
    """A registered region. Its file is closed once it is unregistered and nobody reads or writes it any more."""

    def __init__(self, key: str, offset: int, size: int, descriptor: int) -> None:
        self.key = key
        self.offset = offset
        self.size = size
        self._descriptor = descriptor
        self._users = 1
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, open for so long."""
        with self._lock:
            if not self._users:
                raise InferenceError("the shared memory region was unregistered", Code.NOT_FOUND)
            self._users += 1
        try:
            yield self._descriptor
        finally:
            self.release()

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a region, for a tensor.

    Attributes:
        name: of the region. at: of its file. size: bytes.
    """

    name: str
    region: _Region
    at: int
    size: int

    def read(self) -> bytes:
        """What is there. Raises InferenceError: the client has shortened or unregistered the region."""
        pieces, at, missing = [], self.at, self.size
        with self.region.use() as descriptor:
            while missing:  # one call reads 2 GiB at most
                piece = os.pread(descriptor, missing, at)
                if not piece:
                    raise InferenceError(f"Shared memory region '{self.name}' has become shorter than it was")
                pieces.append(piece)
                at += len(piece)
                missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, output: str, data: Buffer) -> None:
        """Put an output there. Raises InferenceError: it does not fit, or the client has unregistered the region."""
        view, at = memoryview(data).cast("B"), self.at
        if len(view) > self.size:
            raise InferenceError(
                f"shared memory size specified with the request for output '{output}' ({self.size} bytes) should be at "
                f"least {len(view)} bytes to hold the results"
            )
        try:
            with self.region.use() as descriptor:
                while view:
                    written = os.pwrite(descriptor, view, at)
                    view, at = view[written:], at + written
        except OSError as error:
            raise InferenceError(
                f"cannot write to shared memory region '{self.name}': {error.strerror}", Code.UNAVAILABLE
            ) from error


class SharedMemory:
    """The regions that clients have registered.

    Args:
        allowed: whether they may.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Make a region known.

        Args:
            key: as for `shm_open`. offset, size: bytes of it.

        Raises:
            InferenceError: clients may not, there is no such region, or it is shorter.
        """
        self._require_allowed()
        file = _file_name(name, key)
        if name in self._regions:
            raise InferenceError(f"shared memory region '{name:.100}' already in manager", Code.ALREADY_EXISTS)
        if len(self._regions) >= MAX_REGIONS:
            raise InferenceError(f"there are {MAX_REGIONS} shared memory regions already", Code.UNAVAILABLE)
        # A client that cannot say what it means gets the same answer for all of these: Triton's.
        if not 0 <= offset <= MAX_BYTES or not 0 < size <= MAX_BYTES - offset:
            raise _invalid_size(name, f"offset {offset} and byte_size {size} are none of a region")
        try:
            # A link or a pipe is no region, and to open one must not wait for anybody.
            descriptor = os.open(FOLDER / file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InferenceError(f"Unable to open shared memory region: '{key:.300}' ({error.strerror})") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
            os.close(descriptor)
            raise _invalid_size(name, f"bytes {offset} to {offset + size} of {status.st_size}")
        self._regions[name] = _Region(key, offset, size, descriptor)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them. One that is not there is forgotten already. Raises InferenceError."""
        self._require_allowed()
        for each in [name] if name else list(self._regions):
            if region := self._regions.pop(each, None):
                region.release()

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """The region of a name, or all of them. Raises InferenceError: there is none of that name."""
        if name and name not in self._regions:
            raise InferenceError(f"Unable to find system shared memory region: '{name:.100}'", Code.NOT_FOUND)
        regions = {name: self._regions[name]} if name else self._regions
        return [
            {"name": each, "key": region.key, "offset": region.offset, "byte_size": region.size}
            for each, region in regions.items()
        ]

    def window(self, name: str, offset: int, size: int) -> Window:
        """A piece of a region. Raises InferenceError: there is no such region, or it is too short."""
        region = self._regions.get(name)
        if region is None:
            if not self._allowed:
                raise InferenceError(DISABLED, Code.UNSUPPORTED)
            raise InferenceError(f"Unable to find shared memory region: '{name:.100}'", Code.NOT_FOUND)
        if not 0 <= offset < region.size:
            raise InferenceError(
                f"Invalid offset for shared memory region: '{name}': {offset}, and it has {region.size} bytes"
            )
        if not 0 <= size <= region.size - offset:
            raise InferenceError(
                f"Invalid offset + byte size for shared memory region: '{name}': {offset} + {size}, and it has "
                f"{region.size} bytes"
            )
        return Window(name, region, region.offset + offset, size)

    def close(self) -> None:
        """Forget all of them."""
        for region in self._regions.values():
            region.release()
        self._regions.clear()

    def _require_allowed(self) -> None:
        if not self._allowed:
            raise InferenceError(DISABLED, Code.UNSUPPORTED)


def require_no_region(name: str) -> None:
    """Regions of GPUs' memory are asked for, of which there is never one. Raises InferenceError: with this name."""
    if name:
        raise InferenceError(f"Unable to find cuda shared memory region: '{name:.100}'", Code.NOT_FOUND)


def _file_name(name: str, key: str) -> str:
    """The file of a key, which has no other folder than that of all. Raises InferenceError."""
    file = key.lstrip("/")
    if not file or file in (".", "..") or "/" in file or "\0" in file or len(file.encode(errors="replace")) > MAX_KEY:
        raise InferenceError(f"cannot register shared memory region '{name:.100}' - invalid shm key '{key:.300}'")
    for prefix in RESERVED:
        if file.startswith(prefix):
            raise InferenceError(
                f"cannot register shared memory region '{name:.100}' with key '{key:.300}' as the key contains the "
                f"reserved prefix '{prefix}'"
            )
    return file


def _invalid_size(name: str, why: str) -> InferenceError:
    return InferenceError(f"failed to register shared memory region '{name:.100}': invalid args: {why}")
