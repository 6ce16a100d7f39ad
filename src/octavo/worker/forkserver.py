"""A process that has imported what others need, and becomes them by forking: to import it takes a hundred times longer.

Started as `python -m octavo.worker.forkserver DESCRIPTOR MODULE` by `octavo.worker.forking`. It has one thread, and
computes nothing. What is asked for and told stands in packets of a socket; its end is this process's.
"""

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

MAX_PACKET = 1 << 16
MAX_DESCRIPTORS = 2
"""Of a request: the standard input and output of the process."""


class Fork(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Become a process of the module, with these arguments."""

    arguments: tuple[str, ...]


class Started(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A process was started. Said in the order in which they were asked for, as `Refused`."""

    pid: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The system starts no process: `errno`."""

    error: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A process has ended, with an exit status as `Popen.returncode` has it."""

    pid: int
    status: int


News = Started | Refused | Ended

_encoder = msgspec.msgpack.Encoder()
_forks = msgspec.msgpack.Decoder(Fork)


def main() -> int:
    """Serve, or be what was asked for."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    module = importlib.import_module(sys.argv[2])
    gc.collect()
    gc.freeze()  # what is there stays in memory that all processes share
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's are the supervisor's business
        signal.signal(number, signal.SIG_IGN)
    arguments = _serve(connection)
    if arguments is None:
        return 0
    sys.argv[1:] = arguments
    status: int = module.main()
    return status


def _serve(connection: socket.socket) -> Sequence[str] | None:
    """Fork what is asked for. Returns the arguments in a process that was forked, None when nothing will be asked."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == woken:
                    os.read(woken, 1 << 12)
                    _tell_ends(connection)
                    continue
                packet, descriptors, _, _ = socket.recv_fds(connection, MAX_PACKET, MAX_DESCRIPTORS)
                if not packet:
                    return None
                wish = _forks.decode(packet)
                try:
                    pid = os.fork()
                except OSError as error:
                    _tell(connection, Refused(error.errno or 0))
                else:
                    if not pid:
                        signal.set_wakeup_fd(-1)
                        os.close(woken)
                        os.close(waking)
                        connection.close()
                        _become(wish, descriptors)
                        return wish.arguments
                    _tell(connection, Started(pid))
                for each in descriptors:
                    os.close(each)


def _become(wish: Fork, descriptors: Sequence[int]) -> None:
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    # As random does by itself: what instances of a model draw is not the same.
    if (generators := sys.modules.get("numpy.random")) is not None:
        generators.seed()
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(wish.arguments[-1])  # for whoever lists processes; the system cuts it


def _tell_ends(connection: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(connection, Ended(found[0], os.waitstatus_to_exitcode(found[1])))


def _tell(connection: socket.socket, news: News) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the next packet is the end
        connection.send(_encoder.encode(news))


if __name__ == "__main__":
    sys.exit(main())
