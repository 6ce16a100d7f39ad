"""`create_app`: the server as a part of one's own application."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import Message, Receive, Scope, Send

from octavo.deployments import Deployments
from octavo.deployments.entries import require_models
from octavo.deployments.hosted_settings import EVERY_SETTING, HOSTED_SETTINGS, AnySettings, HostedSettings
from octavo.deployments.resources import divide
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, DeploymentSettings, require_distinct_names
from octavo.engine.client import EngineFailed
from octavo.errors import ConfigError, OctavoError
from octavo.hosting.errors import InferenceError
from octavo.hosting.response_cache import ResponseCache
from octavo.llm.background import Background, ClosedError
from octavo.llm.loading import (
    ModelLike,
    OwnCode,
    deployment_settings,
    find,
    hosted_settings,
    running,
    running_hosted,
)
from octavo.server.app import ERROR_FORMATS
from octavo.server.app import create_app as create_server
from octavo.server.context import Server
from octavo.server.errors import error_response, failed, unavailable
from octavo.server.settings import ServerSettings
from octavo.settings import from_table, require_known, resolve, settings_of
from octavo.weights.catalogue import DEFAULT_MODEL

P = ParamSpec("P")
R = TypeVar("R")

ASGI_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip
"""What a request is made of. Frameworks add things of their own, which must not be taken for ours."""

NOT_MOUNTED = (
    *("host", "port", "uds", "api_workers", "shutdown_timeout", "admin_api_key", "admin_api_key_file"),
    *("log_level", "log_verbose", "log_info", "log_warning", "log_error", "log_format", "log_file", "trace_config"),
    *("max_connections", "request_head_timeout", "request_body_timeout", "keep_alive_timeout"),
)
"""Settings of a server that is one of its own: connections and logs are the outer application's."""

SERVER_SETTINGS = settings_of(ServerSettings).keys() - NOT_MOUNTED

LAST_WORDS_SECONDS = 1.0
"""For answers to tell their clients that the server has ended."""

WITHOUT_ENGINE = ("/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json")
"""Routes that say how things stand, and do not wait for a model that is loading."""


class Application:
    """An ASGI application with its engines. See `create_app`."""

    def __init__(
        self,
        deployments: Sequence[AnySettings],
        settings: ServerSettings,
        *,
        in_process: bool,
    ) -> None:
        self._deployments = deployments
        self._settings = settings
        self._in_process = in_process
        self.state = State({"error_formats": ERROR_FORMATS})  # where errors are written that come before the server
        self._starting = threading.Lock()
        self._background: Background[FastAPI] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection, or follow the life of the server if this is its outermost application."""
        match scope["type"]:
            case "lifespan":
                await self._follow_lifespan(receive, send)
            case "http":
                await self._answer(scope, receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1000, "reason": "there are no WebSockets here"})

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        """The engines' life as the outer application's: `FastAPI(lifespan=app.lifespan)` loads the models before it
        takes requests. Without it they are loaded at the first request and end with the process.

        Raises:
            OctavoError: a model cannot be loaded.
        """
        background = await asyncio.to_thread(self._start)
        try:
            await background.arun(_loaded(background.value))
            yield
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the engines and wait until they have ended. The next request would start them again."""
        with self._starting:
            if self._background is not None:
                self._background.close()
                self._background = None

    def _start(self) -> Background[FastAPI]:
        """Find or fetch the models and start their engines, if that is not done yet. They go on loading meanwhile."""
        with self._starting:
            if self._background is None or not self._background.alive:  # not alive: this process was forked
                found = _found(self._deployments)
                self._background = Background(
                    "application", partial(_serving, found, self._settings, in_process=self._in_process)
                )
            return self._background

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        background = self._background
        if background is None or not background.alive:
            try:
                background = await asyncio.to_thread(self._start)
            except OctavoError as error:
                answer = error_response(failed(f"The engine cannot start: {error}."), {**scope, "app": self})
                await answer(scope, receive, send)
                return
        head: Message = {}
        beginning: asyncio.Task[None] | None = None

        async def begin(body: Message) -> None:
            await send(head)
            await send(body)

        async def sent(message: Message) -> None:
            nonlocal head, beginning
            if message["type"] == "http.response.start":
                head = message  # which goes out with the first of the body: else an end between them would part them
            elif beginning is None:
                beginning = asyncio.create_task(begin(message))
                await asyncio.shield(beginning)
            else:
                await send(message)

        there = asyncio.get_running_loop()
        inner = {key: scope[key] for key in ASGI_KEYS if key in scope}
        try:
            await background.arun(_answer(background.value, inner, _from(there, receive), _from(there, sent)))
        except ClosedError:
            if beginning is not None:
                await beginning
                return
            answer = error_response(unavailable("The server is shutting down."), {**scope, "app": self})
            await answer(scope, receive, send)
        except BaseException:  # who cancels the call may answer in its place, and there is one answer to a request
            if beginning is not None:
                beginning.cancel()
            raise

    async def _follow_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except OctavoError as error:
            await send({"type": "lifespan.startup.failed", "message": f"octavo: {error}"})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def create_app(*models: ModelLike | OwnCode, in_process: bool = False, **settings: Any) -> Application:
    """The server as an ASGI application, to be mounted into one's own:

        app = FastAPI()
        app.mount("/ai", octavo.create_app("smollm2:135m", api_key=["secret"], max_num_seqs=8))

    Args:
        models: each is a short name, a Hugging Face repository id, a folder or a .gguf file, a class or function with
            `@octavo.model` or `@octavo.ensemble`, or a file that `octavo serve` takes; the first one answers requests
            that name none.
        in_process: language models compute on threads of this process, and not in worker processes.
        settings: those of the server and of its models, under the names of `octavo serve`'s flags.

    Raises:
        ConfigError: an unknown setting, or one that cannot work. Models are looked for when they are started.
    """
    if not models:
        raise ConfigError(f"name at least one model, such as {DEFAULT_MODEL!r}")
    require_known(settings, (*SERVER_SETTINGS, *EVERY_SETTING), "the setting ")
    given = {name: value for name, value in settings.items() if value is not None}
    source = from_table(given, "keyword argument ")
    server: ServerSettings = resolve(settings_of(ServerSettings).values(), source).build(ServerSettings).with_keys()
    server.validate()
    own = {name: value for name, value in given.items() if name in DEPLOYMENT_SETTINGS}
    hosted = {name: value for name, value in given.items() if name in HOSTED_SETTINGS}
    deployments = [hosted_settings(each, hosted) or deployment_settings(_name_of(each), own) for each in models]
    require_distinct_names(deployments)
    return Application(deployments, server, in_process=in_process)


def _name_of(model: ModelLike | OwnCode) -> ModelLike:
    assert not callable(model)
    return model


def _found(deployments: Sequence[AnySettings]) -> list[AnySettings]:
    """The deployments with where their models lie on this machine."""
    language = [find(each) for each in deployments if isinstance(each, DeploymentSettings)]
    return [
        *(divide(language) if language else []),
        *(each.located() for each in deployments if isinstance(each, HostedSettings)),
    ]


@asynccontextmanager
async def _serving(
    found: Sequence[AnySettings], settings: ServerSettings, *, in_process: bool
) -> AsyncIterator[FastAPI]:
    """Run the engines and what answers with them. At the end answers have a moment to say so to their clients."""
    offered = Deployments()
    try:
        language = [each for each in found if isinstance(each, DeploymentSettings)]
        hosted = [each for each in found if isinstance(each, HostedSettings)]
        cache = ResponseCache(settings.cache_bytes) if settings.cache_bytes else None
        async with (
            running(language, in_process=in_process) as engines,
            running_hosted(hosted, offered, cache) as models,
        ):
            offered.offer([*engines, *models])
            yield create_server(settings, offered, cache=cache)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await asyncio.gather(*map(offered.unused, offered))


async def _loaded(app: FastAPI) -> None:
    """Wait until all models take requests. Raises OctavoError: one never will, or asks for others in vain."""
    server: Server = app.state.server
    deployments = server.deployments
    waits = [
        *(each.engine.ready() for each in deployments.language),
        *(each.client.ready() for each in deployments.hosted),
    ]
    await asyncio.gather(*waits)
    for each in deployments.hosted:
        if each.client.info is not None and each.client.info.asks:
            names = {name for each in deployments for name in (each.name, *each.aliases)}
            require_models(each.name, each.client.info.asks, names)


async def _answer(app: FastAPI, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request; one that needs a model waits until it is loaded."""
    if scope["path"].removeprefix(scope.get("root_path", "")) not in WITHOUT_ENGINE:
        with contextlib.suppress(EngineFailed, InferenceError, ConfigError):  # the routes say it in their own words
            await _loaded(app)
    await app(scope, receive, send)


def _from(there: asyncio.AbstractEventLoop, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """A function of the outer application's loop, for use on ours."""

    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        answer: Future[R] = Future()

        async def outside() -> None:
            try:
                result = await function(*args, **kwargs)
            except asyncio.CancelledError:
                answer.cancel()
                raise
            except Exception as error:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(error)
            else:
                if answer.set_running_or_notify_cancel():
                    answer.set_result(result)

        def begin() -> None:  # there: a loop that ends before it would leave a coroutine that nobody awaits
            task = there.create_task(outside())

            def cancel(_: Future[R]) -> None:
                if answer.cancelled() and not there.is_closed():
                    there.call_soon_threadsafe(task.cancel)

            answer.add_done_callback(cancel)

        there.call_soon_threadsafe(begin)
        return await asyncio.wrap_future(answer)

    return call
