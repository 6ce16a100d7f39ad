"""A frontend process: HTTP on the socket that it inherits, and the frontend's end of every engine.

Started as `python -m octavo.server.process ADDRESS NAME` by the supervisor, which tells it where the engines stand.
Several of them may accept connections on one socket; none knows of the others.
"""

import asyncio
import socket
import sys
from functools import partial

import msgspec
import uvloop

from octavo.deployments import Deployments
from octavo.deployments.loading import open_deployment
from octavo.engine.client import EngineClient
from octavo.errors import OctavoError
from octavo.logs import configure_logging
from octavo.server.launch import FrontendConfiguration
from octavo.server.run import HttpServer
from octavo.worker.control import Failed, Ready, Stop
from octavo.worker.link import SupervisorLink
from octavo.worker.process import Parent


async def _serve(parent: Parent, configuration: FrontendConfiguration) -> None:
    stopped = asyncio.Event()
    server: HttpServer | None = None

    def stop(order: Stop) -> None:
        stopped.set()
        if server is not None:
            server.stop(order.drain_seconds)

    link = SupervisorLink(parent, on_stop=stop, on_notice=lambda _: None)
    deployments = []
    for worker, settings in configuration.deployments.items():
        engine = EngineClient(stall_timeout=settings.stall_timeout, on_culprit=partial(link.culprit_found, worker))
        link.watch(worker, engine.update)
        deployments.append(await asyncio.to_thread(open_deployment, settings, engine))
    if not stopped.is_set():
        listener = socket.socket(fileno=configuration.listener)
        server = HttpServer(configuration.settings, Deployments(deployments), listener, lambda: parent.report(Ready()))
        await server.run()


def main() -> int:
    """Run a frontend as its supervisor asks. Returns the exit status."""
    parent = Parent()
    configuration = msgspec.json.decode(parent.configuration, type=FrontendConfiguration)
    configure_logging(configuration.settings.log_level)
    try:
        uvloop.run(_serve(parent, configuration))
    except OctavoError as error:
        parent.report(Failed(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
