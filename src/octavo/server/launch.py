"""How a supervisor starts a frontend."""

import msgspec

from octavo.deployments.control import Table
from octavo.hosting.response_cache import CacheMemory
from octavo.server.settings import ServerSettings
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


class FrontendConfiguration(msgspec.Struct, kw_only=True):
    """What a frontend is told.

    Attributes:
        listener: the descriptor of the socket that it inherits. grpc_listener, metrics_listener: of those for gRPC and
            for metrics alone, if there are any.
        cache: where answers are kept, if they are.
        settings: how it behaves.
        table: the deployments.
    """

    listener: int
    grpc_listener: int | None
    metrics_listener: int | None
    cache: CacheMemory | None
    settings: ServerSettings
    table: Table


def frontend_spec(name: str, configuration: FrontendConfiguration) -> WorkerSpec:
    """A frontend as a worker of that name."""
    cache = None if configuration.cache is None else configuration.cache.file
    files = (configuration.listener, configuration.grpc_listener, configuration.metrics_listener, cache)
    return WorkerSpec(
        name=name,
        module="octavo.server.process",
        configuration=bytes(raw(configuration)),
        files=tuple(each for each in files if each is not None),
        informed=True,
    )
