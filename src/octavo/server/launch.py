"""How a supervisor starts a frontend."""

import msgspec

from octavo.deployments.settings import DeploymentSettings
from octavo.server.settings import ServerSettings
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


class FrontendConfiguration(msgspec.Struct, kw_only=True):
    """What a frontend is told.

    Attributes:
        listener: the descriptor of the socket that it inherits.
        settings: how it behaves.
        deployments: what is served, by the name of the worker that computes it.
    """

    listener: int
    settings: ServerSettings
    deployments: dict[str, DeploymentSettings]


def frontend_spec(name: str, configuration: FrontendConfiguration) -> WorkerSpec:
    """A frontend as a worker of that name."""
    return WorkerSpec(
        name=name,
        module="octavo.server.process",
        configuration=bytes(raw(configuration)),
        files=(configuration.listener,),
        informed=True,
    )
