"""What is known of one HTTP request and its response; every layer adds its part, the access log prints it."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from octavo.server.keys import PriorityRange

SCOPE_KEY = "octavo.request_context"

CLIENT_GONE = 499
"""What is logged as status when the client left before there was one (nginx's convention)."""


@dataclass(slots=True)
class RequestContext:
    """One request and its response.

    Attributes:
        request_id: the client's `x-request-id`, or one made here.
        tenant: who asks, for fair shares: a digest of the API key, empty without keys.
        priorities: what this key may ask for; None is what the server lets everybody ask for.
        started: `time.perf_counter()` at arrival.
        status: sent to the client, None before that.
        body_bytes: size of the request body.
        prompt_tokens, output_tokens: of the generation, if there was one.
    """

    request_id: str
    tenant: str = ""
    priorities: PriorityRange | None = None
    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    body_bytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @staticmethod
    def of(scope: Scope) -> "RequestContext":
        """The context of the request that a connection's scope describes."""
        context = scope[SCOPE_KEY]
        assert isinstance(context, RequestContext)
        return context
