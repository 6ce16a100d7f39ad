"""For whoever runs the server: is it alive, would it take work, what does it do. None of it waits for an engine."""

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from octavo import __version__
from octavo.deployments import Deployment
from octavo.engine.client import EngineState
from octavo.server.context import Server
from octavo.server.errors import error_body, unavailable
from octavo.server.models import json_response

PROBE_RETRY_SECONDS = 2.0


def liveness_problem(model: Deployment) -> tuple[str, str] | None:
    """Why a model cannot make progress, as (status, sentence); None if it can.

    An engine that is being restarted is no reason: its requests wait and go on by themselves, and killing the whole
    server would lose them.
    """
    engine = model.engine
    match engine.state:
        case EngineState.LOADING:
            done, total = engine.load_progress
            share = f" ({100 * done // total} %)" if total else ""
            return "loading", f"The model '{model.name}' is loading{share}."
        case EngineState.FAILED:
            return "failed", f"The engine of '{model.name}' failed: {engine.failure}."
        case EngineState.STOPPED:
            return "stopped", f"The engine of '{model.name}' is stopped."
    if engine.stalled:
        return "stalled", f"The engine of '{model.name}' has work, but makes no progress."
    return None


def readiness_problem(server: Server) -> tuple[str, str] | None:
    """Why the server would take no new work; None if it would."""
    if server.in_flight.draining:
        return "draining", "The server is shutting down."
    for model in server.models:
        if found := liveness_problem(model):
            return found
        if model.engine.state is EngineState.RESTARTING:
            return "restarting", f"The engine of '{model.name}' died and is being restarted."
    return None


def _probe(found: tuple[str, str] | None, good: str) -> Response:
    if found is None:
        return json_response({"status": good})
    status, message = found
    error = unavailable(message, PROBE_RETRY_SECONDS)
    body = {"status": status, **error_body(error)}
    return Response(orjson.dumps(body), error.status_code, headers=error.headers, media_type="application/json")


def operation_routes(server: Server) -> APIRouter:
    """Health, readiness, version and metrics."""
    router = APIRouter(tags=["Operations"])

    @router.get("/health", responses={503: {"description": "Loading, failed or stalled; `status` says which."}})
    async def health() -> Response:
        """Whether the server is alive: 200 as long as there is no reason to restart it."""
        return _probe(next(filter(None, map(liveness_problem, server.models)), None), "ok")

    @router.get("/ready", responses={503: {"description": "New work would not be taken; `status` says why."}})
    async def ready() -> Response:
        """Whether the server would take new work."""
        return _probe(readiness_problem(server), "ready")

    @router.get("/version")
    async def version() -> Response:
        """The version of Octavo."""
        return json_response({"version": __version__})

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus metrics, under vLLM's names."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(server.registry), headers={"content-type": content_type})

    return router
