"""ModelInfer and ModelStreamInfer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference
from octavo.hosting.tensors import Buffer, Encoded, Place
from octavo.server.context import Server
from octavo.server.errors import ApiError
from octavo.server.grpc.call import Call
from octavo.server.grpc.errors import rpc_error
from octavo.server.grpc.framing import Message
from octavo.server.grpc.infer_request import InferHead, parse_head, split
from octavo.server.grpc.infer_response import response_head, stream_error, streamed, write_response
from octavo.server.inference.classification import classify
from octavo.server.inference.lookup import find, loaded
from octavo.server.offload import off_loop

log = logging.getLogger("octavo.server")

INLINE_BYTES = 64 * 1024
"""Heads up to this size are parsed on the event loop; larger ones have typed contents."""

REMEMBERED_BYTES = 4096
REMEMBERED = 256
"""Heads of requests whose meaning is kept, up to so many bytes each: clients send the same again and again."""

CONCURRENT = 256
"""Requests of a stream that are computed at once, of as many bytes as one may have; the next ones are taken when some
of them have ended."""

Answers = AsyncGenerator[list[Buffer], None]
"""Messages that answer one request of a stream."""

DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class Inferences:
    """Requests of inference."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._heads: dict[bytes, InferHead] = {}

    async def infer(self, call: Call, message: Buffer) -> Sequence[Buffer]:
        """ModelInfer: one result. Raises RpcError."""
        try:
            head, raw = await self._read(message)
            deployment = find(self._server.deployments, head.model, head.version)
            if loaded(deployment).streams:
                raise InferenceError(DECOUPLED, Code.UNSUPPORTED)
            call.deployment = deployment.name
            outputs = await self._compute(call, deployment, head, raw)
        except InferenceError as error:
            raise rpc_error(error) from None
        return write_response(response_head(deployment.name, deployment.version, head.id), outputs)

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
        request = ""
        try:
            head, raw = await self._read(message.data)
            request = head.id
            deployment = find(self._server.deployments, head.model, head.version)
            streams = loaded(deployment).streams
        except InferenceError as error:
            return _failed(error, request), True
        call.deployment = deployment.name
        return (self._results if streams else self._result)(call, deployment, head, raw), not streams

    async def _result(self, call: Call, deployment: HostedDeployment, head: InferHead, raw: list[Buffer]) -> Answers:
        try:
            outputs = await self._compute(call, deployment, head, raw)
        except InferenceError as error:
            yield stream_error(str(error), head.id)
            return
        yield streamed(write_response(response_head(deployment.name, deployment.version, head.id, True), outputs))

    async def _results(self, call: Call, deployment: HostedDeployment, head: InferHead, raw: list[Buffer]) -> Answers:
        """All of a model that has any number of them: which one is the last is known only when there is no other."""
        name, version = deployment.name, deployment.version
        use = self._server.deployments.begin()
        use.choose(deployment)
        try:
            inference = await self._inference(call, head, raw)
            async for outputs in deployment.client.stream(inference):
                finished = outputs if head.plain else await self._finish(deployment, head, outputs)
                yield streamed(write_response(response_head(name, version, head.id, False), finished))
        except InferenceError as error:
            yield stream_error(str(error), head.id)
            return
        finally:
            use.end()
        if head.empty_final:
            yield streamed([response_head(name, version, head.id, True)])

    async def _read(self, message: Buffer) -> tuple[InferHead, list[Buffer]]:
        """A request's head, and the raw bytes of its inputs. Raises InferenceError."""
        written, raw = split(message)
        head = self._heads.get(written)
        if head is None:
            head = await off_loop(parse_head, written) if len(written) > INLINE_BYTES else parse_head(written)
            if len(written) <= REMEMBERED_BYTES:
                if len(self._heads) >= REMEMBERED:
                    self._heads.clear()
                self._heads[written] = head
        head.check_raw(len(raw))
        return head, raw

    async def _compute(
        self, call: Call, deployment: HostedDeployment, head: InferHead, raw: list[Buffer]
    ) -> dict[str, Encoded]:
        use = self._server.deployments.begin()
        use.choose(deployment)
        try:
            outputs = await deployment.client.infer(await self._inference(call, head, raw))
            return outputs if head.plain else await self._finish(deployment, head, outputs)
        finally:
            use.end()

    async def _inference(self, call: Call, head: InferHead, raw: list[Buffer]) -> Inference:
        """What is asked of the model. A client that leaves at a deadline does not wait longer in its queue."""
        inputs: dict[str, Encoded] = {}
        index = 0
        for each in head.inputs:
            data: Buffer
            if each.data is not None:
                data = each.data
            elif each.region is not None:
                window = self._server.shared_memory.window(each.region.name, each.region.offset, each.region.size)
                data = await off_loop(window.read)
            else:
                data = raw[index]
                index += 1
            inputs[each.name] = Encoded(each.datatype, each.shape, data)
        timeout, remaining, key = head.options.timeout, call.remaining, call.head.key
        if remaining is not None:
            timeout = min(timeout, remaining) if timeout else remaining
        try:
            priority = self._server.priority(head.options.priority or None, key.priorities if key else None)
        except ApiError as error:
            raise InferenceError(str(error)) from None
        return Inference(inputs=inputs, outputs=head.names, priority=priority, timeout=timeout)

    async def _finish(
        self, deployment: HostedDeployment, head: InferHead, outputs: dict[str, Encoded]
    ) -> dict[str, Encoded]:
        """Outputs as they are wanted: as classes, or in regions, of which nothing but their shapes is sent."""
        info = loaded(deployment)
        labels = {spec.name: spec.labels for spec in info.outputs}
        finished = dict(outputs)
        for each in head.outputs:
            output = outputs.get(each.name)
            if output is None:
                raise InferenceError(f"the model gave no output '{each.name}'", Code.INTERNAL)
            if each.classes:
                finished[each.name] = await off_loop(
                    classify,
                    output,
                    each.classes,
                    Place(each.name, deployment.name),
                    batched=info.max_batch_size > 0,
                    labels=labels.get(each.name, ()),
                )
            elif each.region is not None:
                window = self._server.shared_memory.window(each.region.name, each.region.offset, each.region.size)
                await off_loop(window.write, each.name, output.data)
                finished[each.name] = Encoded(output.datatype, output.shape, b"")
        return finished


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
