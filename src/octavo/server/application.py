"""The framework's application, within what every request passes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.context import Server
from octavo.server.inference.documentation import document, with_models


class Application(FastAPI):
    """The framework's, of which requests see nothing that are answered before its routes: what it does in front of
    middleware of its own (telemetry, a limit on bodies) takes longer than all of ours.

    Args:
        outside: middleware, the outermost first.
        options: of the framework.
    """

    def __init__(self, *, outside: Sequence[Middleware], **options: Any) -> None:
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

    def openapi(self) -> dict[str, Any]:
        """The description of all routes, and of the bodies of models that are offered now."""
        if self.openapi_schema is None:
            document(super().openapi())
        server: Server = self.state.server
        return with_models(super().openapi(), server.deployments.hosted)
