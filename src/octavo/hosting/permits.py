"""What a model's process may compute: the rate limiter says it, batch by batch."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from octavo.errors import ConfigError
from octavo.hosting.rate_limit_wire import Asked, Join, Permit, Refused, Release, Stuck, Want, decode_told, encode
from octavo.hosting.rate_limits import Limits
from octavo.worker.forks import keep_from_forks

_READ_BYTES = 1 << 12


class Permits:
    """The slots of a process, each for an instance, and which of them may compute.

    Who takes batches asks and hears, one thread at a time; any thread may say that its slot is free.

    Args:
        path: where the rate limiter listens. process: the name of this one. model: that of the model.
        instances: of this process, by their slots. everything: those of all processes of the model.

    Raises:
        ConfigError: one of them could never compute. OSError: there is no rate limiter.
    """

    def __init__(
        self, path: str, process: str, model: str, instances: Sequence[Limits], everything: Sequence[Limits]
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        keep_from_forks(self._socket)  # at whose end what this process has is free
        self._changing = threading.Lock()
        self._slots = len(instances)
        self._free = set(range(self._slots))
        self._permitted: int | None = None
        self._over = b""
        self._asked = False
        self._within: frozenset[str] = frozenset()
        self._stuck: str | None = None
        self._rest = b""
        self._send(Join(process, model, tuple(instances), tuple(everything)))
        joined = False
        while not joined:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the rate limiter has ended")
            joined = self._receive(data)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """A descriptor that can be read when there is something to `hear`."""
        return self._socket.fileno()

    def hear(self) -> bool:
        """Take what the rate limiter says. Returns whether it may say more: it ends with the server, as this process
        does."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._receive(data)
        return bool(data)

    @property
    def owes(self) -> bool:
        """Whether what has computed is still to be given back: by the next `claim`, `give_back` or `settle`."""
        return bool(self._over)

    def claim(self, within: frozenset[str]) -> bool:
        """A batch is ready. Returns whether it may be computed, and asks for that if it may not.

        Args:
            within: the processes that go on only when it is computed.
        """
        if self._permitted is None and (not self._asked or within - self._within):
            with self._changing:
                if self._free:
                    self._asked, self._within = True, within
                    self._send(Want(tuple(sorted(self._free)), tuple(within)))
        self.settle()
        return self._permitted is not None

    def stuck(self) -> str | None:
        """Why what waits within others will never be computed, if that has been said since the last call."""
        why, self._stuck = self._stuck, None
        return why

    def give_back(self) -> None:
        """There is nothing to compute any more."""
        if self._permitted is not None:
            self.release(self.take(), used=False)
        self.settle()

    def settle(self) -> None:
        """Give back what is owed: nothing is going to be asked for soon."""
        if self._over:
            with self._changing:
                self._flush()

    def take(self) -> int:
        """The slot that may compute, and does."""
        slot, self._permitted = self._permitted, None
        assert slot is not None
        return slot

    def release(self, slot: int, *, used: bool = True) -> None:
        """A slot has computed, or used its permit for nothing.

        The one slot of a process says so together with what it wants next: between the two another model would have
        its turn.
        """
        with self._changing:
            self._free.add(slot)
            self._over += encode(Release(slot, used))
            if self._slots > 1:
                self._flush()

    def _receive(self, data: bytes) -> bool:
        """Returns whether there was a whole line. Raises ConfigError: one of the instances could never compute."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            match decode_told(line):
                case Permit(slot):
                    self._asked, self._permitted = False, slot
                    with self._changing:
                        self._free.discard(slot)
                case Stuck(message):
                    self._stuck, self._within = message, frozenset()
                case Refused(message):
                    raise ConfigError(message)
        return bool(lines)

    def _send(self, message: Asked) -> None:
        self._over += encode(message)
        self._flush()

    def _flush(self) -> None:
        over, self._over = self._over, b""
        with suppress(BrokenPipeError, ConnectionResetError):  # it ends with the server, as this process does
            self._socket.sendall(over)
