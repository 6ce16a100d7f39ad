"""What is known of one HTTP request and its response; every layer adds its part, the access log prints it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from octavo.hosting.trace import Span
from octavo.server.keys import PriorityRange

SCOPE_KEY = "octavo.request_context"

LEAVING_KEY = "octavo.leaving"
"""Where a connection's scope has what is called when the client leaves, a set; only on our own connections."""

CLIENT_GONE = 499
"""What is logged and counted as status when the client left before the end of its answer (nginx's convention)."""


@dataclass(slots=True)
class RequestContext:
    """One request and its response.

    Attributes:
        request_id: the client's `x-request-id`, or one made here.
        tenant: who asks, for fair shares: a digest of the API key, empty without keys.
        priorities: what this key may ask for; None is what the server lets everybody ask for.
        started: `time.perf_counter()` at arrival.
        status: sent to the client, None before that; `CLIENT_GONE` once it has left.
        deployment: the name of what answers, if anything does.
        prompt_tokens, output_tokens: of the generation, if there was one.
        received_bytes, sent_bytes: of the bodies to and from a hosted model; None if it is for none.
        refusal: what is wrong, in the words of the error response, if it is one.
        warning: what the client should know of its request, in ASCII; empty if all of it was understood.
        trace: where it is written down, if it is one of those that are traced.
    """

    request_id: str
    tenant: str = ""
    priorities: PriorityRange | None = None
    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    deployment: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    received_bytes: int | None = None
    sent_bytes: int = 0
    refusal: str = ""
    warning: str = ""
    trace: Span | None = None

    _ends: list[Callable[[], None]] = field(default_factory=list)

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when the response has been sent, or given up."""
        self._ends.append(call)

    def end(self) -> None:
        """The response has been sent, or given up."""
        for call in self._ends:
            call()

    @staticmethod
    def of(scope: Scope) -> "RequestContext":
        """The context of the request that a connection's scope describes."""
        context = scope[SCOPE_KEY]
        assert isinstance(context, RequestContext)
        return context
