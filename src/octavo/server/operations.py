"""For whoever runs the server: is it alive, would it take work, what does it do. None of it waits for an engine."""

from collections.abc import Callable
from typing import NamedTuple

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from octavo import __version__
from octavo.deployments import AnyDeployment, HostedDeployment
from octavo.deployments.control import UNLOADED
from octavo.engine.client import EngineState
from octavo.server.context import Server
from octavo.server.errors import error_body, unavailable
from octavo.server.models import json_response
from octavo.worker.control import WorkerState

PROBE_RETRY_SECONDS = 2.0

METRICS = "/metrics"


class Problem(NamedTuple):
    """What is wrong: one word for programs, one sentence for people."""

    status: str
    sentence: str


def liveness_problem(model: AnyDeployment) -> Problem | None:
    """Why a model cannot make progress, as a status and a sentence; None if it can.

    An engine that is being restarted is no reason: its requests wait and go on by themselves, and killing the whole
    server would lose them.
    """
    if isinstance(model, HostedDeployment):
        return _hosted_problem(model)
    engine = model.engine
    match engine.state:
        case EngineState.LOADING:
            done, total = engine.load_progress
            share = f" ({100 * done // total} %)" if total else ""
            return Problem("loading", f"The model '{model.name}' is loading{share}.")
        case EngineState.FAILED:
            return Problem("failed", f"The engine of '{model.name}' failed: {engine.failure}.")
        case EngineState.STOPPED:
            return Problem("stopped", f"The engine of '{model.name}' is stopped.")
    if engine.stalled:
        return Problem("stalled", f"The engine of '{model.name}' has work, but makes no progress.")
    return None


def _hosted_problem(model: HostedDeployment) -> Problem | None:
    match model.state:
        case WorkerState.LOADING:
            return Problem("loading", f"The model '{model.name}' is loading.")
        case WorkerState.FAILED:
            return Problem("failed", f"The model '{model.name}' failed: {model.client.failure}.")
        case WorkerState.STOPPED:
            return Problem("stopped", f"The model '{model.name}' is stopped.")
    return None


def readiness_problem(model: AnyDeployment) -> Problem | None:
    """Why a model would take no new work; None if it would."""
    what = f"The model '{model.name}'" if isinstance(model, HostedDeployment) else f"The engine of '{model.name}'"
    if model.state is WorkerState.RESTARTING:
        return Problem("restarting", f"{what} died and is being restarted.")
    return liveness_problem(model)


def server_problem(server: Server) -> Problem | None:
    """Why the server would not take all work that it is there for; None if it would."""
    if server.in_flight.draining:
        return Problem("draining", "The server is shutting down.")
    return next(filter(None, map(readiness_problem, server.deployments)), None) or repository_problem(server)


def repository_problem(server: Server) -> Problem | None:
    """Why a model of a repository is missing that nobody has unloaded; None if none is, or if that does not matter."""
    if server.deployments.loading:
        return Problem("loading", "The models of the repository are loading.")
    if not server.settings.strict_readiness:
        return None
    for each in server.deployments.listed:
        if each.state and each.reason != UNLOADED:
            why = f": {each.reason.rstrip('.')}" if each.reason else ""
            return Problem(each.state.lower(), f"The model '{each.name}' is {each.state.lower()}{why}.")
    return None


def _probe(
    server: Server, find: Callable[[AnyDeployment], Problem | None], good: str, of_all: Problem | None = None
) -> Response:
    """The state of every deployment. A problem of one of them, or of all, is one of the server."""
    problems = {each.name: find(each) for each in server.deployments}
    states = {name: good if problem is None else problem.status for name, problem in problems.items()}
    found = of_all or next(filter(None, problems.values()), None)
    if found is None:
        return json_response({"status": good, "deployments": states})
    error = unavailable(found.sentence, PROBE_RETRY_SECONDS)
    body = {"status": found.status, "deployments": states, **error_body(error)}
    return Response(orjson.dumps(body), error.status_code, headers=error.headers, media_type="application/json")


def operation_routes(server: Server) -> APIRouter:
    """Health, readiness, version and metrics."""
    router = APIRouter(tags=["Operations"])

    @router.get("/health", responses={503: {"description": "Loading, failed or stalled; `status` says which."}})
    async def health() -> Response:
        """Whether the server is alive: 200 as long as there is no reason to restart it."""
        return _probe(server, liveness_problem, "ok")

    @router.get("/ready", responses={503: {"description": "New work would not be taken; `status` says why."}})
    async def ready() -> Response:
        """Whether the server would take new work."""
        draining = Problem("draining", "The server is shutting down.") if server.in_flight.draining else None
        return _probe(server, readiness_problem, "ready", draining or repository_problem(server))

    @router.get("/version")
    async def version() -> Response:
        """The version of Octavo."""
        return json_response({"version": __version__})

    async def metrics(request: Request) -> Response:
        """Prometheus metrics, under vLLM's names."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await server.together.metrics()), headers={"content-type": content_type})

    if server.settings.allow_metrics:
        router.get(METRICS)(metrics)
    return router
