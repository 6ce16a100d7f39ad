"""What every request for a hosted model passes: it is let in, and it holds its model until its end."""

from dataclasses import replace

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.info import HostedInfo
from octavo.server.inference.http import Call, CallHead
from octavo.server.inference.lookup import find, loaded
from octavo.server.inference.parameters import DEFAULT, Options, options
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


def presence(call: Call) -> Presence:
    """For the time that a request is computed."""
    return Presence(call.server.in_flight, call.scope, call.receive)


def allowed_options(call: CallHead, parameters: dict[str, object] | None) -> Options:
    """What a request says of its treatment, within what its key may. Raises InferenceError, ApiError."""
    wanted = options(parameters) if parameters else DEFAULT
    priority = call.server.priority(wanted.priority or None, call.context.priorities)
    return wanted if priority == wanted.priority else replace(wanted, priority=priority)
