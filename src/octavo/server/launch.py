"""How a supervisor starts a frontend."""

import msgspec

from octavo.deployments.control import Table
from octavo.server.settings import ServerSettings
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


class FrontendConfiguration(msgspec.Struct, kw_only=True):
    """What a frontend is told.

    Attributes:
        listener: the descriptor of the socket that it inherits. grpc_listener: of the one for gRPC, if there is one.
        settings: how it behaves.
        table: the deployments.
    """

    listener: int
    grpc_listener: int | None
    settings: ServerSettings
    table: Table


def frontend_spec(name: str, configuration: FrontendConfiguration) -> WorkerSpec:
    """A frontend as a worker of that name."""
    return WorkerSpec(
        name=name,
        module="octavo.server.process",
        configuration=bytes(raw(configuration)),
        files=tuple(each for each in (configuration.listener, configuration.grpc_listener) if each is not None),
        informed=True,
    )
