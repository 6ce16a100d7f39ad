"""A frontend process: HTTP on the socket that it inherits, and the frontend's end of every engine.

Started as `python -m octavo.server.process ADDRESS NAME` by the supervisor, which tells it where the engines stand.
Several of them may accept connections on one socket; none knows of the others.
"""

import asyncio
import socket
import sys

import msgspec
import uvloop

from octavo.deployments import Deployments
from octavo.errors import OctavoError
from octavo.logs import configure_logging
from octavo.server.app import create_app
from octavo.server.launch import FrontendConfiguration
from octavo.server.offering import Offering
from octavo.server.run import HttpServer, settings_on
from octavo.worker.control import Failed, Ready, Stop
from octavo.worker.link import SupervisorLink
from octavo.worker.process import Parent


async def _serve(parent: Parent, configuration: FrontendConfiguration) -> None:
    stopped = asyncio.Event()
    server: HttpServer | None = None

    def stop(order: Stop) -> None:
        stopped.set()
        if server is not None:
            offering.stop()
            server.stop(order.drain_seconds)

    deployments = Deployments()
    link = SupervisorLink(parent, on_stop=stop, on_notice=lambda payload: offering.on_notice(payload))
    offering = Offering(link, deployments)
    await offering.begin(configuration.table)
    if not stopped.is_set():
        listener = socket.socket(fileno=configuration.listener)
        settings = settings_on(listener, configuration.settings)
        app = create_app(settings, deployments, offering.fulfil)
        server = HttpServer(settings, app, listener, lambda: parent.report(Ready()))
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
