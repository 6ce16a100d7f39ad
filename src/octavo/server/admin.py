"""Administration: which deployments a server has, while it runs. Guarded by keys of its own."""

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response

from octavo.deployments.control import Administer, Describe, Load, Outcome, Unload, Wish
from octavo.server.body import JsonRoute
from octavo.server.errors import ERROR_RESPONSES, ApiError
from octavo.server.schema.base import Body


class LoadRequest(Body):
    """POST /admin/deployments"""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="What requests call it. One that is there already is replaced.")
    model: str = Field(min_length=1, description="A short name, a Hugging Face repository id, a folder or a GGUF file.")
    settings: dict[str, Any] = Field({}, description="Those of a table [deployments.NAME] in a configuration file.")


def admin_routes(administer: Administer) -> APIRouter:
    """Listing, loading, replacing and unloading deployments."""
    router = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["Administration"], responses=ERROR_RESPONSES)

    async def fulfil(wish: Wish) -> Outcome:
        outcome = await administer(wish)
        if outcome.error is not None:
            raise _error(outcome)
        return outcome

    @router.get("/deployments")
    async def list_deployments() -> Response:
        """Every deployment, those included that are being loaded or only end what they began."""
        outcome = await fulfil(Describe())
        return _json({"deployments": outcome.deployments})

    @router.post("/deployments")
    async def load_deployment(body: LoadRequest) -> Response:
        """Load a deployment, or a newer version beside the one that is there. Answers when requests reach it.

        An error leaves everything as it was."""
        settings = {name.replace("-", "_"): value for name, value in body.settings.items()}
        outcome = await fulfil(Load(name=body.name, model=body.model, settings=settings))
        return _json(outcome.deployments[0])

    @router.delete("/deployments/{name:path}")
    async def unload_deployment(name: str) -> Response:
        """Offer a deployment no longer. Requests that have begun go on to their end."""
        outcome = await fulfil(Unload(name))
        return _json(outcome.deployments[0])

    return router


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error(outcome: Outcome) -> ApiError:
    kind = "server_error" if outcome.status >= 500 else "invalid_request_error"
    headers = {"x-should-retry": "false"} if outcome.status >= 500 else None
    return ApiError(outcome.status, f"{outcome.error}.", type=kind, headers=headers)
