"""From a client's body to the response that answers it: the same for every dialect."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.deployments.choice import Delta, join
from octavo.deployments.deployment import Deployment
from octavo.deployments.prepare import Prepared, prepare
from octavo.deployments.request import GenerationRequest
from octavo.engine.config import ModelInfo
from octavo.errors import InvalidRequest
from octavo.grammar.compiler import GrammarBusy, NotCompiled
from octavo.server.body import JsonRoute
from octavo.server.context import Server
from octavo.server.dialects.dialect import Dialect, Writer
from octavo.server.errors import overloaded, unavailable
from octavo.server.generation import ServedGeneration
from octavo.server.offload import off_loop
from octavo.server.reply import EventStream, Reply
from octavo.server.request_context import RequestContext
from octavo.server.schema.base import Body
from octavo.text.bounds import WORK_LIMIT
from octavo.text.template import TemplateOutOfWork

INLINE_TOKENS = 512
"""Answers of up to so many tokens are written on the event loop, in less than a millisecond; but for log-probabilities,
which are long."""

BRIEF_BYTES = 4096
"""Requests whose body has so many bytes at most have no more than two thousand tokens in most languages."""

BRIEF_WORK = 1 << 14
"""Of a chat template on the event loop: a millisecond."""

RETRY_COMPILING = 2.0
"""Seconds, when too many grammars are waiting."""

B = TypeVar("B", bound=Body)

Parse = Callable[[], GenerationRequest]
"""Makes a request in no API's words of one API's body. Raises ApiError for fields that do not go together."""

Admit = Callable[[str], tuple[Deployment, ModelInfo]]
"""Finds the model for a new generation. Raises ApiError: there is none, or not now."""


def dialect_routes(server: Server, dialects: Sequence[Dialect[B]]) -> APIRouter:
    """A route for every dialect."""
    router = APIRouter(route_class=JsonRoute)
    for dialect in dialects:
        _add(router, server, dialect)
    return router


def _add(router: APIRouter, server: Server, dialect: Dialect[B]) -> None:
    async def answer(request: Request, body: B) -> Response:
        return await _answer(server, dialect, request, body)

    answer.__annotations__["body"] = dialect.body  # what the framework validates and documents
    router.post(
        dialect.path,
        name=type(dialect).__name__,
        summary=re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(dialect).__name__).capitalize(),
        description=type(dialect).__doc__,
        tags=[dialect.tag],
        responses=dialect.responses,
    )(answer)


async def begin(server: Server, http: Request, parse: Parse, *, size: int) -> tuple[Prepared, ServedGeneration]:
    """What answers a request, before the engine hears of it.

    Args:
        parse: the request in no API's words. It is called in a thread if there is much to do.
        size: bytes of all that the prompt is made of.
    """
    context = RequestContext.of(http.scope)
    use = server.deployments.begin()
    context.at_end(use.end)
    prepared = await prepare_request(server, parse, context, size=size)
    use.choose(prepared.deployment)
    context.deployment = prepared.deployment.name
    return prepared, ServedGeneration(prepared, server.generation_metrics, context)


async def _answer(server: Server, dialect: Dialect[B], http: Request, body: B) -> Response:
    size = len(await http.body())
    prepared, generation = await begin(server, http, partial(dialect.parse, body), size=size)
    writer = dialect.writer(body, generation)

    async def stream(events: EventStream) -> bytes:
        with generation:
            generation.submit()
            events.keep_alive(generation.accepted)
            async for deltas in generation.steps():
                data = b"".join([writer.events(delta) for delta in deltas])
                if data:
                    await events.write(data)
            return writer.end()

    async def collect(_: EventStream) -> bytes:
        choices: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
        with generation:
            generation.submit()
            async for deltas in generation.steps():
                for delta in deltas:
                    choices[delta.index].append(delta)
            if prepared.has_logprobs or generation.usage.completion_tokens > INLINE_TOKENS:
                return await off_loop(_write, writer, choices)
            return _write(writer, choices)

    streamed = prepared.request.stream
    return Reply(
        stream if streamed else collect,
        writer,
        server.in_flight,
        streamed=streamed,
        ping_seconds=server.settings.sse_keep_alive_interval,
    )


async def prepare_request(
    server: Server, parse: Parse, context: RequestContext, *, size: int, admit: Admit | None = None
) -> Prepared:
    """A request that is ready for the engine; its grammar is compiled first, if it has one that is not known.

    Args:
        size: bytes of all that the prompt is made of.
        admit: finds the model that a request names; `Server.admit` without it.

    Raises:
        ApiError, InvalidRequest: it cannot be served, or not now.
    """
    while True:
        try:
            return await _attempt(server, parse, context, admit or server.admit, brief=size <= BRIEF_BYTES)
        except NotCompiled as missing:
            left = None if missing.timeout is None else context.started + missing.timeout - time.perf_counter()
            try:
                async with asyncio.timeout(left):
                    # Others may wait for the same grammar, whatever becomes of this request.
                    await asyncio.shield(asyncio.wrap_future(missing.begin(context.tenant)))
            except GrammarBusy as error:
                raise overloaded(f"The server is overloaded: {error}.", RETRY_COMPILING) from error
            except TimeoutError as error:
                message = f"The 'timeout' of {missing.timeout:g} s was over before the answer's grammar was compiled."
                raise unavailable(message, RETRY_COMPILING) from error


async def _attempt(server: Server, parse: Parse, context: RequestContext, admit: Admit, *, brief: bool) -> Prepared:
    """One that is brief is prepared on the event loop, which costs half as much as a thread, unless its chat template
    has more to do."""
    if brief:
        try:
            return _prepare(server, parse, context, admit, BRIEF_WORK)
        except InvalidRequest as error:
            if not isinstance(error.__cause__, TemplateOutOfWork):
                raise
    return await off_loop(_prepare, server, parse, context, admit, WORK_LIMIT)


def _prepare(server: Server, parse: Parse, context: RequestContext, admit: Admit, work: int) -> Prepared:
    request = parse()
    request = replace(request, priority=server.priority(request.priority, context.priorities))
    deployment, info = admit(request.model)
    try:
        return prepare(request, deployment, info, server.seed, work=work)
    except NotCompiled as missing:
        missing.timeout = request.timeout
        raise


def _write(writer: Writer, choices: Sequence[Sequence[Delta]]) -> bytes:
    return b"".join(writer.whole([join(deltas) for deltas in choices]))
