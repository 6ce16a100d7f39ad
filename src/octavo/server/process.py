"""A frontend process: HTTP on the socket that it inherits, and the frontend's end of every engine.

Started as `python -m octavo.server.process ADDRESS NAME` by the supervisor, which tells it where the engines stand.
Several of them may accept connections on one socket; none knows of the others.
"""

import asyncio
import ctypes
import gc
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

SWITCH_SECONDS = 0.001
"""After so long a thread that computes lets the event loop have its turn."""

GC_THRESHOLDS = (10_000, 10, 10)
"""Objects that make a collection of the youngest, and collections that make one of the next generation."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of the allocator (mallopt(3))."""

KEPT_BYTES = 128 * 2**20
"""Of freed memory, at most."""

LARGEST_KEPT = 32 * 2**20
"""Bytes of a piece of memory that is kept. The allocator takes no larger number."""


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
        grpc = configuration.grpc_listener
        grpc_listener = None if grpc is None else socket.socket(fileno=grpc)
        server = HttpServer(settings, app, listener, grpc_listener, lambda: parent.report(Ready()))
        _prefer_short_pauses()
        await server.run()


def _prefer_short_pauses() -> None:
    """Set the interpreter up so that little work holds up the event loop for long."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # What is there now stays for good. Collections, which large requests bring about, need not go through it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _keep_freed_memory() -> None:
    """Have the allocator keep what bodies of megabytes leave: to give it back to the system, and take it again page by
    page, would cost each of them more than all that is done with it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # of glibc
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def main() -> int:
    """Run a frontend as its supervisor asks. Returns the exit status."""
    parent = Parent()
    configuration = msgspec.json.decode(parent.configuration, type=FrontendConfiguration)
    configure_logging(configuration.settings.log_level)
    _keep_freed_memory()
    try:
        uvloop.run(_serve(parent, configuration))
    except OctavoError as error:
        parent.report(Failed(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
