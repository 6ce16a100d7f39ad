"""The HTTP application: routes behind the middleware that every request passes."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from octavo import __version__
from octavo.deployments import Deployments
from octavo.deployments.control import Administer
from octavo.errors import InvalidRequest
from octavo.hosting.response_cache import ResponseCache
from octavo.server.admin import admin_routes
from octavo.server.answer import dialect_routes
from octavo.server.application import Application
from octavo.server.context import Server
from octavo.server.count_tokens import count_tokens_routes
from octavo.server.dialects import DIALECTS
from octavo.server.errors import (
    ErrorFormat,
    on_http_exception,
    on_invalid_request,
    on_unexpected,
    on_validation_error,
)
from octavo.server.host_middleware import HostMiddleware
from octavo.server.hosts import ANY
from octavo.server.inference.app import InferenceMiddleware
from octavo.server.inference.http import ROOT
from octavo.server.inference.http import ErrorFormat as InferenceErrors
from octavo.server.inference.language_model import LanguageModelClient
from octavo.server.middleware import (
    REQUEST_ID_HEADERS,
    WARNING_HEADER,
    AuthenticationMiddleware,
    RequestContextMiddleware,
)
from octavo.server.models import model_routes
from octavo.server.operations import operation_routes
from octavo.server.render import render_routes
from octavo.server.responses import response_routes
from octavo.server.settings import ServerSettings
from octavo.server.tracing import Tracer

ERROR_FORMATS: dict[str, ErrorFormat] = {**{dialect.path: dialect for dialect in DIALECTS}, ROOT: InferenceErrors()}
"""Errors as the API of each path has them, and of the paths below it."""


def create_app(
    settings: ServerSettings,
    deployments: Deployments,
    administer: Administer | None = None,
    cache: ResponseCache | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Build the application. It neither starts nor stops the engines of the deployments.

    Args:
        administer: does what administrators want; without it, or without a key for them, there is no /admin.
        cache: where the deployments keep answers, if they do.
        tracer: of requests; without one, none is traced.

    Raises:
        ConfigError: settings that cannot work.
    """
    settings = settings.with_keys()
    settings.validate()
    server = Server(settings, deployments, administer, cache, tracer)
    deployments.as_tensors = lambda deployment, streams: LanguageModelClient(server, deployment, streams=streams)
    middleware = [Middleware(RequestContextMiddleware, metrics=server.http_metrics)]
    if settings.allowed_hosts and ANY not in settings.allowed_hosts:
        middleware.append(Middleware(HostMiddleware, allowed=settings.allowed_hosts))
    if settings.allowed_origins:
        # Outside the check of keys: browsers ask without one, and must be able to read a refusal.
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.allowed_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=[*REQUEST_ID_HEADERS, "retry-after", WARNING_HEADER],
            )
        )
    if settings.client_keys or settings.admin_keys:
        keys, admin_keys = settings.client_keys, settings.admin_keys
        middleware.append(Middleware(AuthenticationMiddleware, keys=keys, admin_keys=admin_keys))
    middleware.append(Middleware(InferenceMiddleware, server=server))
    app = Application(
        title="Octavo",
        version=__version__,
        redoc_url=None,
        redirect_slashes=False,
        outside=middleware,
        exception_handlers={
            Exception: on_unexpected,
            HTTPException: on_http_exception,
            InvalidRequest: on_invalid_request,
            RequestValidationError: on_validation_error,
        },
    )
    app.state.server = server
    app.state.error_formats = ERROR_FORMATS
    app.include_router(dialect_routes(server, DIALECTS))
    for routes in (render_routes, response_routes, count_tokens_routes, model_routes, operation_routes):
        app.include_router(routes(server))
    if administer is not None and settings.admin_keys:
        app.include_router(admin_routes(administer))
    return app
