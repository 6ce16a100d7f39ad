"""The rate limiter's end of the sockets to models' processes: in the event loop of whoever supervises them.

A process that ends gives back what it has, however it ends: the system closes its connection.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.rate_limit_wire import (
    Join,
    Joined,
    Permit,
    Refused,
    Release,
    Stuck,
    Told,
    Want,
    decode_asked,
    encode,
)
from octavo.hosting.rate_limits import Available, Instance, RateLimiter

log = logging.getLogger(__name__)


class RateLimitServer:
    """Listens at a path.

    Args:
        available: as for `RateLimiter`.
    """

    def __init__(self, path: str, available: Sequence[Available]) -> None:
        self.path = path
        self.limiter = RateLimiter(available)
        self.owners: dict[Instance, tuple[_Process, int]] = {}
        self.processes: dict[str, Sequence[Instance]] = {}
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Process(self), self.path)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def permit(self) -> None:
        """Tell everybody who may compute now."""
        while (instance := self.limiter.next()) is not None:
            process, slot = self.owners[instance]
            process.tell(Permit(slot))


class _Process(asyncio.Protocol):
    """A process of a model."""

    def __init__(self, server: RateLimitServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._instances: list[Instance] = []
        self._wanted: Instance | None = None
        self._name = ""
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """It says something."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._hear(line)
        except (msgspec.DecodeError, IndexError):
            log.exception("a model's process says to the rate limiter what nobody understands")
            assert self._transport is not None
            self._transport.abort()
        self._server.permit()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        for instance in self._instances:
            self._server.limiter.remove(instance)
            del self._server.owners[instance]
        if self._server.processes.get(self._name) is self._instances:  # its heir may be there already
            del self._server.processes[self._name]
        self._instances = []
        self._server.permit()

    def tell(self, message: Told) -> None:
        """Send something. Never waits."""
        assert self._transport is not None
        self._transport.write(encode(message))

    def _hear(self, line: bytes) -> None:
        limiter = self._server.limiter
        match decode_asked(line):
            case Join(name, model, instances, everything):
                try:
                    limiter.check(model, everything)
                except ConfigError as error:
                    self.tell(Refused(str(error)))
                    return
                for slot, limits in enumerate(instances):
                    instance = Instance(model, limits)
                    self._instances.append(instance)
                    self._server.owners[instance] = (self, slot)
                    limiter.add(instance)
                self._name = name
                self._server.processes[name] = self._instances
                self.tell(Joined())
            case Want(slots, within):
                self._want([self._instances[slot] for slot in slots], within)
            case Release(slot, used):
                limiter.release(self._instances[slot], used=used)

    def _want(self, instances: Sequence[Instance], within: Sequence[str]) -> None:
        limiter, known = self._server.limiter, self._server.processes
        holders = [each for name in within for each in known.get(name, ())]
        if self._wanted is None or not self._wanted.waits:
            able = [each for each in instances if not limiter.lacks(each, holders)]
            self._wanted = limiter.want(able or instances)
        if why := limiter.lacks(self._wanted, holders):
            self.tell(Stuck(f"the model '{self._wanted.model}' cannot compute this request: {why}"))
