"""The framework's application, within what every request passes."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.context import Server
from octavo.server.inference.documentation import document, with_models
from octavo.server.models import json_response
from octavo.server.offload import off_loop


class Application(FastAPI):
    """The framework's, of which requests see nothing that are answered before its routes: what it does in front of
    middleware of its own (telemetry, a limit on bodies) takes longer than all of ours.

    Args:
        outside: middleware, the outermost first.
        options: of the framework.
    """

    def __init__(self, *, outside: Sequence[Middleware], **options: Any) -> None:
        self._describing = asyncio.Lock()
        super().__init__(**options)
        app: ASGIApp = partial(Starlette.__call__, self)
        for each in reversed(outside):
            app = each.cls(app, *each.args, **each.kwargs)
        self._outside = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            scope["app"] = self
            await self._outside(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def setup(self) -> None:
        """Add the framework's own routes, and in front of them the description."""
        self.add_route("/openapi.json", self._describe, include_in_schema=False)
        super().setup()

    async def _describe(self, request: Request) -> Response:
        """In a thread: the first time takes long enough for every stream to be seen to stop."""
        async with self._describing:
            schema = await off_loop(self.openapi)
        if root := request.scope.get("root_path", "").rstrip("/"):
            schema = {**schema, "servers": [{"url": root}]}
        return await off_loop(json_response, schema)

    def openapi(self) -> dict[str, Any]:
        """The description of all routes, and of the bodies of models that are offered now."""
        if self.openapi_schema is None:
            document(super().openapi())
        server: Server = self.state.server
        return with_models(super().openapi(), server.deployments.hosted)
