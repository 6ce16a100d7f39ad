"""The protocol's routes, in front of the framework's, which would take longer than the rest of an inference."""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.hosting.errors import InferenceError
from octavo.server.context import Server
from octavo.server.errors import ApiError, error_response
from octavo.server.inference.bodies import GENERATE, generate_text, takes_prompts
from octavo.server.inference.http import ROOT, Call, api_error, refuse
from octavo.server.inference.routes import PREDICT, Found, Route, find_route
from octavo.server.leaving import ClientGone


class InferenceMiddleware:
    """Answers what the protocol is asked, and leaves the rest to the application behind it."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if root := scope.get("root_path", ""):
            path = path.removeprefix(root)
        found = find_route(path) if path.startswith(("/v2", "/v1/models/")) else None
        if found is not None or path == ROOT or path.startswith(f"{ROOT}/"):
            await self._answer(found, Call(self._server, scope, receive, send))
        elif path == GENERATE and scope["method"] == "POST" and takes_prompts(self._server):
            await self._generate(Call(self._server, scope, receive, send))
        else:
            await self._app(scope, receive, send)

    async def _generate(self, call: Call) -> None:
        """Language models answer prompts, too; what they are asked is read here first."""
        call.scope["route"] = _GENERATE
        try:
            receive = await generate_text(call)
        except ClientGone:
            return
        except (InferenceError, ApiError) as error:
            said = api_error(error) if isinstance(error, InferenceError) else error
            await error_response(said, call.scope)(call.scope, call.receive, call.send)
            return
        if receive is not None:
            await self._app(call.scope, receive, call.send)

    async def _answer(self, found: Found | None, call: Call) -> None:
        try:
            if found is None:
                raise ApiError(404, "Not Found")
            call.scope["route"] = found.route
            call.name, call.version = found.name, found.version
            if (header := self._server.http_restrictions.missing(found.route.api, call.headers)) is not None:
                raise ApiError(403, f"This API is restricted, expecting header '{header}'")
            handler = found.route.methods.get(call.scope["method"])
            if handler is not None:
                await handler(call)
            elif call.scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_allow(found))(call.scope, call.receive, call.send)
            else:
                raise ApiError(405, "Method Not Allowed", headers=_allow(found))
        except ClientGone:
            pass
        except (InferenceError, ApiError) as error:
            said = api_error(error) if isinstance(error, InferenceError) else error
            if found is not None and found.route is PREDICT:  # Octavo's own, as its other routes below /v1
                await error_response(said, call.scope)(call.scope, call.receive, call.send)
            else:
                await refuse(call, said)


_GENERATE = Route(GENERATE, {}, "inference")


def _allow(found: Found) -> dict[str, str]:
    methods = {*found.route.methods, "OPTIONS", *(("HEAD",) if "GET" in found.route.methods else ())}
    return {"Allow": ", ".join(sorted(methods))}
