"""A generation that a client of the server asked for: counted, and its errors said in the API's words."""

import time

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.prepare import Prepared
from octavo.engine.client import EngineFailed, EngineStopped, EngineUnavailable
from octavo.engine.request import Output, Refusal, Request, RequestRefused
from octavo.errors import OctavoError
from octavo.server import errors
from octavo.server.metrics import GenerationMetrics, Trace
from octavo.server.request_context import RequestContext


class ServedGeneration(Generation):
    """All the choices of one HTTP request.

    Args:
        context: learns how many tokens came of it.

    Raises from `submit` and `steps`:
        ApiError: the engine does not take a request, or fails on one.
    """

    def __init__(self, prepared: Prepared, metrics: GenerationMetrics, context: RequestContext) -> None:
        super().__init__(prepared, tenant=context.tenant, arrival=context.started)
        self._metrics = metrics
        self._context = context
        self._traces: list[Trace] = []
        context.prompt_tokens = self.usage.prompt_tokens

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for trace in self._traces:
            trace.close()
        self._context.output_tokens = self.usage.completion_tokens

    def begin(self, request: Request) -> None:
        """Count it."""
        self._traces.append(Trace(self._metrics, self.deployment.name, request, self._context.started))

    def note(self, position: int, output: Output, delta: Delta, tokens: int) -> None:
        """Count it."""
        now, trace = time.perf_counter(), self._traces[position]
        trace.step(output, len(delta.token_ids), now)
        if delta.finish is not None:
            trace.finish(output.index, delta.finish.reason, tokens, now)

    def failure(self, position: int, error: OctavoError) -> Exception:
        """An engine's error as one of the API, counted."""
        trace = self._traces[position]
        match error:
            case EngineUnavailable():
                trace.reject("unavailable")
                if error.retry_after is None:
                    return errors.failed(f"{error}.")
                return errors.unavailable(f"{error}.", error.retry_after)
            case RequestRefused():
                trace.reject(error.kind)
                if error.kind is Refusal.OVERLOADED:
                    return errors.overloaded(f"The server is overloaded: {error.message}.", error.retry_after)
                if error.kind is Refusal.TOO_LONG:
                    return errors.context_length_exceeded(self.deployment.context_length, f"{error.message}.")
                return errors.invalid(f"{error.message}.")
            case EngineStopped():
                trace.close()
                return errors.unavailable("The server is shutting down.", retry_after=1.0)
            case EngineFailed():
                trace.fail()
                return errors.internal(f"The engine failed: {error}.")
        return error
