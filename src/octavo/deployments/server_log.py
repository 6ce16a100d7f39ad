"""How all processes of a server log, and how that changes."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from msgspec.structs import asdict

from octavo.deployments.control import ChangeLogging
from octavo.logs import LogSettings, change_logging
from octavo.worker.supervisor import Supervisor


class ServerLog:
    """The log of the supervisor and of the processes that it has started.

    Args:
        settings: how they log now. frontends: those that speak with clients, who are to find what they have changed.
    """

    def __init__(self, supervisor: Supervisor, settings: LogSettings, frontends: Sequence[str]) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self._frontends = frontends

    async def change(self, wish: ChangeLogging) -> None:
        """Do what a client wants."""
        given = {name: value for name, value in asdict(wish).items() if value is not None}
        self._settings = settings = replace(self._settings, **given)
        change_logging(settings)
        self._supervisor.set_logging(settings)
        await asyncio.gather(*map(self._supervisor.synced, self._frontends))
