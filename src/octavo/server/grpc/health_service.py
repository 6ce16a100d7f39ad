"""`grpc.health.v1.Health`: whether the server, or one of its models, would take work."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from google.protobuf.message import DecodeError

from octavo.deployments import Deployments, HostedDeployment
from octavo.hosting.tensors import Buffer
from octavo.protos.messages import message
from octavo.server.grpc.call import Call, Method
from octavo.server.grpc.status import RpcError, Status
from octavo.server.inference.lookup import is_ready

NAME = "grpc.health.v1.Health"

WATCH_SECONDS = 0.5
"""Between two looks at what is watched."""

_Request = message("grpc.health.v1.HealthCheckRequest")
_Response = message("grpc.health.v1.HealthCheckResponse")

UNKNOWN = _Response.ServingStatus.Value("SERVICE_UNKNOWN")


class HealthService:
    """The methods.

    Args:
        services: of the server, which are as well as it is itself.
    """

    def __init__(
        self, deployments: Deployments, is_server_ready: Callable[[], bool], services: Collection[str]
    ) -> None:
        self._deployments = deployments
        self._is_server_ready = is_server_ready
        self._services = services

    def methods(self) -> dict[str, Method]:
        """By path. They need no key, and stand in no log: somebody asks every few seconds."""
        return {
            f"/{NAME}/Check": Method(unary=self._check, open=True, logged=False, api="health"),
            f"/{NAME}/Watch": Method(streaming=self._watch, open=True, logged=False, api="health"),
        }

    def _status(self, name: str) -> int:
        if not name or name in self._services:
            ready = self._is_server_ready()
        else:
            model = self._deployments.get(name)
            if not isinstance(model, HostedDeployment):
                return int(UNKNOWN)
            ready = is_ready(model)
        return int(_Response.ServingStatus.Value("SERVING" if ready else "NOT_SERVING"))

    def _check(self, call: Call, written: Buffer) -> Sequence[Buffer]:
        name = _named(written)
        status = self._status(name)
        if status == UNKNOWN:
            raise RpcError(Status.NOT_FOUND, f"There is no service {name[:300]!r}.")
        return [_Response(status=status).SerializeToString()]

    async def _watch(self, call: Call) -> None:
        """Tell the status, and every change, for as long as the client likes."""
        name = _named(await call.message())
        told = None
        while not call.ending:
            status = self._status(name)
            if status != told:
                await call.send([_Response(status=status).SerializeToString()])
                told = status
            await asyncio.sleep(WATCH_SECONDS)


def _named(written: Buffer) -> str:
    """The service that is asked for; empty for the server."""
    try:
        name: str = _Request.FromString(written).service
    except DecodeError:
        raise RpcError(Status.INVALID_ARGUMENT, "the request is no grpc.health.v1.HealthCheckRequest") from None
    return name
