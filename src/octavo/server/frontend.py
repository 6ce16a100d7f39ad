"""A frontend from its start to its end: HTTP on the socket that it inherits, and its end of every engine."""

import asyncio
import gc
import socket
import sys

import msgspec

from octavo.deployments import Deployments
from octavo.hosting.response_cache import ResponseCache
from octavo.server.app import create_app
from octavo.server.launch import FrontendConfiguration
from octavo.server.offering import Offering
from octavo.server.run import HttpServer, settings_on
from octavo.server.together import Together
from octavo.server.tracing import Tracer
from octavo.worker.control import NOTHING, Ready, Stop
from octavo.worker.link import SupervisorLink
from octavo.worker.process import Parent

SWITCH_SECONDS = 0.001
"""After so long a thread that computes lets the event loop have its turn."""

GC_THRESHOLDS = (10_000, 10, 10)
"""Objects that make a collection of the youngest, and collections that make one of the next generation."""


async def serve(parent: Parent, configuration: FrontendConfiguration) -> None:
    """Serve until the supervisor ends it. Raises OctavoError: it cannot."""
    stopped = asyncio.Event()
    server: HttpServer | None = None

    def stop(order: Stop) -> None:
        stopped.set()
        if server is not None:
            offering.stop()
            server.stop(order.drain_seconds)

    deployments, tracer = Deployments(), Tracer()
    together: Together | None = None

    def answer(question: msgspec.Raw) -> msgspec.Raw:
        return NOTHING if together is None else together.answer(question)

    link = SupervisorLink(
        parent, on_stop=stop, on_notice=lambda payload: offering.on_notice(payload), on_question=answer
    )
    cache = None if configuration.cache is None else ResponseCache(configuration.cache.size, configuration.cache)
    offering = Offering(link, deployments, cache, tracer)
    await offering.begin(configuration.table)
    if not stopped.is_set():
        listener = socket.socket(fileno=configuration.listener)
        settings = settings_on(listener, configuration.settings)
        app = create_app(settings, deployments, offering.fulfil, cache, tracer)
        together = app.state.server.together
        if settings.api_workers > 1:
            together.gather = offering.gather
        grpc, metrics = _inherited(configuration.grpc_listener), _inherited(configuration.metrics_listener)
        server = HttpServer(settings, app, listener, grpc, lambda: parent.report(Ready()), metrics_listener=metrics)
        _prefer_short_pauses()
        await server.run()


def _inherited(descriptor: int | None) -> socket.socket | None:
    return None if descriptor is None else socket.socket(fileno=descriptor)


def _prefer_short_pauses() -> None:
    """Set the interpreter up so that little work holds up the event loop for long."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # What is there now stays for good. Collections, which large requests bring about, need not go through it.
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(*GC_THRESHOLDS)
