"""A supervised process's end of the pipes to its supervisor."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from octavo.logs import LogSettings, change_logging
from octavo.worker.control import Order, Report, SetLogging, as_logging, decode_order, encode
from octavo.worker.forks import keep_from_forks

_HANDED = "OCTAVO_CONFIGURATION"
"""A variable: the descriptor of a file with the first lines, in a process that was another program."""


class Parent:
    """The supervisor, as the process that it started sees it.

    Takes standard input and output for itself: what this process prints goes to standard error from now on, and there
    is nothing for it to read. Signals
    from a terminal, or to a whole group of processes, are the supervisor's business: it lets its processes finish.

    Attributes:
        configuration: the first line, or the one behind that which says how to log. logging: that.
        stopping: whether this is to end; a process is ended instead of being told.
        at_end: called before this process ends with its supervisor.
    """

    stopping = False
    at_end: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._reports = os.fdopen(os.dup(1), "wb", buffering=0)
        self._reporting = threading.Lock()
        os.dup2(2, 1)
        self._input = os.fdopen(os.dup(0), "rb", buffering=0)
        keep_from_forks(self._reports)  # at whose end the supervisor sees that of this process
        keep_from_forks(self._input)
        self._lines = _lines(self._input.fileno())
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        handed = os.environ.pop(_HANDED, "")
        first = iter(_read(int(handed)).split(b"\n")) if handed else self._lines
        line = next(first, b"")
        logging = as_logging(line)
        self.configuration = line if logging is None else next(first, b"")
        self.logging = logging or LogSettings()
        if not self.configuration:
            os._exit(0)

    def become(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Go on as another program, which finds here what this process found. Does not return. Raises OSError.

        To be called before anything is reported or followed, and after nothing but the configuration was read.
        """
        handed = os.memfd_create("configuration", 0)
        os.write(handed, encode(SetLogging(self.logging)) + self.configuration)
        os.dup2(self._input.fileno(), 0)
        os.dup2(self._reports.fileno(), 1)
        os.execve(command[0], [*command], {**variables, _HANDED: str(handed)})

    def report(self, report: Report) -> None:
        """Tell the supervisor something. Any thread may do so."""
        data = encode(report)
        try:
            with self._reporting:
                while data:
                    data = data[os.write(self._reports.fileno(), data) :]
        except BrokenPipeError:
            os._exit(0)

    def end(self) -> None:
        """End this process."""
        try:
            self.at_end()
        finally:
            os._exit(0)

    def follow(self, on_order: Callable[[Order], object] | None = None) -> None:
        """Call `on_order`, in a thread of its own, for every order; end this process when its supervisor is gone."""
        threading.Thread(target=self._follow, args=(on_order,), name="parent", daemon=True).start()

    def _follow(self, on_order: Callable[[Order], object] | None) -> None:
        for line in self._lines:
            order = decode_order(line)
            if isinstance(order, SetLogging):
                change_logging(order.settings)
            elif on_order is not None:
                on_order(order)
        self.end()


def _read(descriptor: int) -> bytes:
    """All of a file."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _lines(descriptor: int) -> Iterator[bytes]:
    # Not through sys.stdin: a thread that holds its lock for ever would make the interpreter abort at its own end.
    rest = b""
    while more := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + more).split(b"\n")
        yield from lines
