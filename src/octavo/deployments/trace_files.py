"""The files of traces, which all frontends write to, and what they have to know of each other for it.

A file is whole JSON at any moment. While it is not complete, and others are to follow it, it is called FILE.partN.
"""

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from octavo.deployments.trace_settings import UNLIMITED, TraceSetting

_COMMON = struct.Struct("<QQQ")
"""The number of the next request, that of the next file, and whether the file without a number has been begun."""

_SETTING = struct.Struct("<qQQQ")
"""Of a setting: how many requests it may still trace, how many it has traced, how many are in the file that is not
complete, and whether the setting is used no more."""


class TraceState:
    """What frontends have in common, in a file. Any thread may use it.

    Args:
        path: of the file, which `create` has made.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        self._writing = os.open(path + ".writing", os.O_RDWR | os.O_CREAT, 0o600)
        self._one_thread = threading.Lock()
        self._one_writer = threading.Lock()

    @classmethod
    def create(cls, path: str) -> "TraceState":
        """Make the file."""
        with open(path, "xb") as file:
            file.write(_COMMON.pack(1, 0, 0))
        return cls(path)

    def close(self) -> None:
        """It is used no more."""
        os.close(self._descriptor)
        os.close(self._writing)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Files are written by one process at a time. It may take long, and holds up nobody who counts."""
        with self._one_writer, _locked(self._writing):
            yield

    # --- what is counted ----------------------------------------------------------------------------------------------

    def begin(self, setting: TraceSetting) -> None:
        """There is a new setting."""
        self._write(setting.number, (setting.count, 0, 0, 0))

    def take(self, setting: TraceSetting) -> bool:
        """Whether one request more may be traced, which is counted then."""

        def one_less(left: int, *rest: int) -> tuple[int, ...]:
            return (left - 1 if left > 0 else left, *rest)

        return self._change(setting.number, one_less)[0] != 0

    def give_back(self, setting: TraceSetting) -> None:
        """A request that was counted was none that can be traced."""

        def one_more(left: int, *rest: int) -> tuple[int, ...]:
            return (left if left == UNLIMITED else left + 1, *rest)

        self._change(setting.number, one_more)

    def left(self, setting: TraceSetting) -> int:
        """How many requests a setting may still trace; -1 for any number."""
        return self._read(setting.number)[0]

    def numbers(self, count: int) -> int:
        """The first of so many numbers of requests that nobody else has."""
        with self._one_thread, _locked(self._descriptor):
            first, files, begun = self._common()
            self._write_common(first + count, files, begun)
        return first

    # --- what is written ----------------------------------------------------------------------------------------------

    def write(self, file: str, setting: TraceSetting, traces: Sequence[bytes]) -> None:
        """Append traces, each the elements of an array of JSON. Raises OSError: the file cannot be written."""
        with self.writing():
            if _in_one(setting) or self._read(setting.number)[3]:
                self._append_plain(file, traces)
                return
            part = _part(file, setting)
            for trace in traces:
                _append(part, trace, fresh=not self._read(setting.number)[2])
                _, traced, there, _ = self._change(setting.number, lambda a, b, c, d: (a, b + 1, c + 1, d), new=True)
                if traced == setting.count or there == setting.log_frequency:
                    self._complete(file, setting)

    def end(self, file: str, setting: TraceSetting) -> None:
        """A setting is used no more: what is not complete is all there is. Raises OSError."""
        with self.writing():
            _, _, there, _ = self._change(setting.number, lambda a, b, c, _: (a, b, c, 1))
            if not there:
                return
            if setting.log_frequency:
                self._complete(file, setting)
            else:
                part = _part(file, setting)
                self._append_plain(file, [part.read_bytes()[1:-1]])
                part.unlink()

    def _append_plain(self, file: str, traces: Sequence[bytes]) -> None:
        with self._one_thread, _locked(self._descriptor):
            first, files, begun = self._common()
            self._write_common(first, files, 1)
        _append(Path(file), b",".join(traces), fresh=not begun)

    def _complete(self, file: str, setting: TraceSetting) -> None:
        with self._one_thread, _locked(self._descriptor):
            first, files, begun = self._common()
            self._write_common(first, files + 1, begun)
        os.replace(_part(file, setting), f"{file}.{files}")
        self._change(setting.number, lambda a, b, _, d: (a, b, 0, d))

    # --- the file -----------------------------------------------------------------------------------------------------

    def _common(self) -> tuple[int, int, int]:
        first, files, begun = _COMMON.unpack(os.pread(self._descriptor, _COMMON.size, 0))
        return first, files, begun

    def _write_common(self, first: int, files: int, begun: int) -> None:
        os.pwrite(self._descriptor, _COMMON.pack(first, files, begun), 0)

    def _read(self, number: int) -> tuple[int, ...]:
        return _SETTING.unpack(os.pread(self._descriptor, _SETTING.size, _place(number)))

    def _write(self, number: int, values: tuple[int, ...]) -> None:
        os.pwrite(self._descriptor, _SETTING.pack(*values), _place(number))

    def _change(self, number: int, change: Callable[..., tuple[int, ...]], *, new: bool = False) -> tuple[int, ...]:
        """Change what is known of a setting. Returns what was; what is, if `new`."""
        with self._one_thread, _locked(self._descriptor):
            before = self._read(number)
            after = change(*before)
            self._write(number, after)
        return after if new else before


def _place(number: int) -> int:
    return _COMMON.size + number * _SETTING.size


def _in_one(setting: TraceSetting) -> bool:
    """Whether all of its traces are in the file without a number."""
    return not setting.log_frequency and setting.count == UNLIMITED


def _part(file: str, setting: TraceSetting) -> Path:
    return Path(f"{file}.part{setting.number}")


def _append(path: Path, elements: bytes, *, fresh: bool) -> None:
    """Append to an array, in one call of the system, or leave it as it was.

    Args:
        fresh: whether a new one is begun.

    Raises:
        OSError: there is no room, or the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o644)
    try:
        size = os.fstat(descriptor).st_size  # 0 also if somebody has taken the file away
        data = memoryview(b"%b%b]" % (b"," if size else b"[", elements))
        at = max(size - 1, 0)
        try:
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = data[written:], at + written
        except OSError:  # a disk that has become full has taken a part of it
            os.ftruncate(descriptor, size)
            if size:
                os.pwrite(descriptor, b"]", size - 1)
            else:
                path.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
