"""A name that requests may use, and a hosted model behind it."""

import time
from dataclasses import dataclass

from octavo.deployments.hosted_settings import HostedSettings
from octavo.hosting.model_client import ModelClient
from octavo.worker.control import WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedDeployment:
    """A model that is no language model, and the names it answers to.

    Attributes:
        name: the name in replies and metrics. aliases: other names that requests may use.
        root: where it came from. created: seconds since the epoch.
        version: a number, as the Open Inference Protocol has it: "1" where nothing says another.
        client: asks the processes that compute it.
    """

    name: str
    client: ModelClient
    created: int
    aliases: tuple[str, ...] = ()
    root: str = ""
    version: str = "1"

    @classmethod
    def of(cls, settings: HostedSettings, client: ModelClient) -> "HostedDeployment":
        """Made of its settings."""
        return cls(
            name=settings.name,
            client=client,
            created=int(time.time()),
            aliases=settings.names[1:],
            root=settings.model,
            version=settings.hosting.version,
        )

    @property
    def state(self) -> WorkerState:
        """What its processes can do now."""
        return self.client.state

    def close(self) -> None:
        """Let go of what it holds; its last request has ended."""
        self.client.close()
