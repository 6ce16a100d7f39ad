"""What every request for a hosted model passes: it is let in, and it holds its model until its end."""

import time
from dataclasses import replace

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.info import HostedInfo
from octavo.server.forwarding import forwarded
from octavo.server.inference.body import read_body
from octavo.server.inference.http import Call, CallHead
from octavo.server.inference.lookup import find, loaded
from octavo.server.inference.parameters import DEFAULT, Options, options, with_parameters
from octavo.server.leaving import Presence


def begin(call: CallHead) -> tuple[HostedDeployment, HostedInfo]:
    """The model of a request, which it holds until its end.

    Raises:
        InferenceError: there is none, or it cannot compute now. ApiError: the server is shutting down.
    """
    server, context = call.server, call.context
    server.in_flight.admit()
    deployment = find(server.deployments, call.name, call.version)
    info = loaded(deployment)
    use = server.deployments.begin()
    use.choose(deployment)
    context.at_end(use.end)
    context.deployment, context.received_bytes = deployment.name, 0
    return deployment, info


async def read_asked(call: Call, deployment: HostedDeployment) -> bytes:
    """The body of a request for a model. Raises ApiError: as `read_body`."""
    data = await read_body(call)
    if call.server.tracer.on:
        begin_trace(call, deployment)
    return data


def begin_trace(call: CallHead, deployment: HostedDeployment) -> None:
    """Trace a request whose body has come, if it is one of those that are traced."""
    trace, context = call.server.tracer.begin(deployment.name), call.context
    if trace is not None:
        context.trace = trace.root
        trace.root.event("HTTP_RECV_START", time.monotonic() - (time.perf_counter() - context.started))
        trace.root.event("HTTP_RECV_END")
        context.at_end(lambda: trace.root.event("HTTP_SEND_END"))
        context.at_end(trace.close)


def presence(call: Call) -> Presence:
    """For the time that a request is computed."""
    return Presence(call.server.in_flight, call.scope, call.receive)


def allowed_options(call: CallHead, parameters: dict[str, object] | None) -> Options:
    """What a request says of its treatment, within what its key may, and its headers that are parameters, too.

    Raises:
        InferenceError, ApiError: it may not.
    """
    wanted = options(parameters) if parameters else DEFAULT
    if (pattern := call.server.http_forwarding) is not None:
        headers = forwarded(pattern, call.headers.items())
        wanted = replace(wanted, details=with_parameters(wanted.details, headers))
    priority = call.server.priority(wanted.priority or None, call.context.priorities)
    return wanted if priority == wanted.priority else replace(wanted, priority=priority)
