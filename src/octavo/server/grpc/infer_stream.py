"""ModelStreamInfer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Buffer
from octavo.server.context import Server
from octavo.server.grpc.call import Call
from octavo.server.grpc.framing import Message
from octavo.server.grpc.infer import Inferences, Known
from octavo.server.grpc.infer_request import Request, split
from octavo.server.grpc.infer_response import (
    response_head,
    response_id,
    response_parameters,
    stream_error,
    streamed,
    write_response,
)
from octavo.server.grpc.traced import with_trace
from octavo.server.inference.lookup import find, loaded

log = logging.getLogger("octavo.server")

CONCURRENT = 256
"""Requests of a stream that are computed at once, of as many bytes as one may have; the next ones are taken when some
of them have ended."""

Answers = AsyncGenerator[list[Buffer], None]
"""Messages that answer one request of a stream."""


class InferenceStreams:
    """Calls that are streams of requests."""

    def __init__(self, server: Server, inferences: Inferences) -> None:
        self._server = server
        self._inferences = inferences

    async def stream(self, call: Call) -> None:
        """ModelStreamInfer: any number of requests, and of results for each, or an error.

        They are computed concurrently. Models that have one result for each answer in the order of their requests, as
        Triton's do.
        """
        running: dict[asyncio.Task[bytes], int] = {}
        most_bytes = self._server.settings.max_tensor_body_bytes
        before: asyncio.Task[bytes] | None = None
        try:
            async with aclosing(call.messages()) as messages:
                async for message in messages:
                    answer, ordered = await self._begin(call, message)
                    task = self._server.in_flight.start(_send(call, answer, before if ordered else None))
                    before = task if ordered else before
                    running[task] = len(message.data)
                    task.add_done_callback(running.pop)
                    task.add_done_callback(lambda _, message=message: call.release(message))  # type: ignore[misc]
                    while len(running) >= CONCURRENT or sum(running.values()) > most_bytes:
                        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if running:
                await asyncio.wait(running)
        finally:
            for each in list(running):
                each.cancel()

    async def _begin(self, call: Call, message: Message) -> tuple[Answers, bool]:
        """What answers a request of a stream, and whether that has to wait for earlier ones."""
        name = ""
        try:
            request = split(message.data)
            name = request.id
            known = await self._inferences.read(request)
            deployment = find(self._server.deployments, known.head.model, known.head.version)
            streams = loaded(deployment).streams
        except InferenceError as error:
            return _failed(error, name), True
        call.deployment = deployment.name
        answer = self._results if streams else self._result
        if self._server.tracer.on:
            return self._traced(partial(answer, call, deployment, known), deployment.name, request), not streams
        return answer(call, deployment, known, request), not streams

    async def _traced(self, answer: Callable[[Request], Answers], model: str, request: Request) -> Answers:
        """What answers a request that may be one of those that are traced."""
        request = with_trace(self._server, model, request)
        span = request.trace
        try:
            async with aclosing(answer(request)) as answers:
                async for each in answers:
                    if span is not None:
                        span.event("GRPC_SEND_START")
                    yield each
                    if span is not None:
                        span.event("GRPC_SEND_END")
        finally:
            if span is not None:
                span.trace.close()

    async def _result(self, call: Call, deployment: HostedDeployment, known: Known, request: Request) -> Answers:
        try:
            outputs = await self._inferences.compute(call, deployment, known, request)
        except InferenceError as error:
            yield stream_error(str(error), request.id)
            return
        yield streamed(write_response(_head(deployment, request, outputs.parameters, final=True), outputs))

    async def _results(self, call: Call, deployment: HostedDeployment, known: Known, request: Request) -> Answers:
        """All of a model that has any number of them: the last may be known as such only when there is no other."""
        head, last = known.head, False
        use = self._server.deployments.begin()
        use.choose(deployment)
        try:
            inference = await self._inferences.inference(call, head, request)
            async for outputs in deployment.client.stream(inference):
                finished = outputs if head.plain else await self._inferences.finish(deployment, head, outputs)
                last = outputs.last
                yield streamed(write_response(_head(deployment, request, outputs.parameters, final=last), finished))
        except InferenceError as error:
            yield stream_error(str(error), request.id)
            return
        finally:
            use.end()
        if head.empty_final and not last:
            yield streamed([_head(deployment, request, {}, final=True)])


def _head(
    deployment: HostedDeployment, request: Request, parameters: Mapping[str, bool | int | float | str], *, final: bool
) -> bytes:
    name, head = response_id(request.id), response_head(deployment.name, deployment.version, final)
    return name + head + response_parameters(parameters)


async def _failed(error: InferenceError, request: str) -> Answers:
    yield stream_error(str(error), request)


async def _send(call: Call, answers: Answers, before: "asyncio.Task[bytes] | None") -> bytes:
    """Send what answers a request of a stream, behind what answers another one."""
    async with aclosing(answers):
        try:
            async for answer in answers:
                if before is not None and not before.done():
                    await asyncio.wait((before,))
                await call.send(answer)
        except Exception:  # a defect of ours: the stream's other requests have nothing to do with it
            log.exception("a request of a stream failed")
            await call.send(stream_error("The server had an error while processing this request.", ""))
    return b""
