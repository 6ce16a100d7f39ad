"""Requests of gRPC that are traced."""

import time

from octavo.hosting.trace import Span
from octavo.server.context import Server
from octavo.server.grpc.infer_request import Request


class Traced:
    """As long as a call is answered that is traced. See `octavo.server.grpc.call.Work`."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self) -> None:
        """The call has ended."""
        self._span.event("GRPC_SEND_END")
        self._span.trace.close()


def with_trace(server: Server, model: str, request: Request, since: float | None = None) -> Request:
    """A request that has come, with its trace if it is one of those that are traced.

    Args:
        since: `time.perf_counter()` when its client began to send it; now without.
    """
    trace = server.tracer.begin(model) if server.tracer.on else None
    if trace is None:
        return request
    span = trace.root
    span.request_id = request.id
    span.event("GRPC_WAITREAD_START", None if since is None else time.monotonic() - (time.perf_counter() - since))
    span.event("GRPC_WAITREAD_END")
    return request._replace(trace=span)
