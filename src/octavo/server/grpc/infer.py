"""ModelInfer, and what ModelStreamInfer has in common with it."""

from collections.abc import Sequence
from copy import copy

from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.registry import Use
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference, Outline, Outlined, Outputs
from octavo.hosting.info import HostedInfo
from octavo.hosting.pending import Pending
from octavo.hosting.tensors import Buffer, Encoded, Place
from octavo.hosting.wire import Output, Part
from octavo.server.context import Server
from octavo.server.errors import ApiError
from octavo.server.grpc.call import Call
from octavo.server.grpc.errors import rpc_error
from octavo.server.grpc.infer_request import InferHead, Request, parse_head, split
from octavo.server.grpc.infer_response import (
    describe,
    interleave,
    response_head,
    response_id,
    response_parameters,
    write_response,
)
from octavo.server.grpc.traced import Traced, with_trace
from octavo.server.inference.classification import classify
from octavo.server.inference.lookup import find, loaded
from octavo.server.inference.parameters import named, with_parameters
from octavo.server.offload import off_loop

INLINE_BYTES = 64 * 1024
"""Heads up to this size are parsed on the event loop; larger ones have typed contents."""

REMEMBERED_BYTES = 4096
REMEMBERED = 256
"""Heads of requests whose meaning is kept, up to so many bytes each: clients send the same again and again."""

DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class Known:
    """The head of requests, and what was found out about the last of them."""

    __slots__ = ("_deployment", "_described", "_outline", "_parts", "_sizes", "head")

    def __init__(self, head: InferHead) -> None:
        self.head = head
        self._outline: Outline | None = None
        self._sizes: list[int] = []
        self._deployment: HostedDeployment | None = None
        self._parts: tuple[Part, ...] = ()
        self._described: Sequence[bytes] = ()

    def keep(self, outline: Outline) -> None:
        """What was asked of the model: it depends on nothing but the head and the sizes of raw bytes, if all inputs
        are."""
        if self.head.all_raw:
            self._outline, self._sizes = outline, [part.size for part in outline.parts]

    def fits(self, info: HostedInfo, raw: Sequence[Buffer]) -> Outline | None:
        """The same, if it may be asked of this model and with such bytes."""
        outline = self._outline
        if outline is not None and outline.info is info and [len(each) for each in raw] == self._sizes:
            return outline
        return None

    def answer(self, deployment: HostedDeployment, output: Output, data: memoryview, request: str) -> list[Buffer]:
        """The answer of a model, as buffers that are sent one behind the other. `request`: its name."""
        if output.parts != self._parts or deployment is not self._deployment:
            self._described = describe(response_head(deployment.name, deployment.version), output.parts)
            self._parts, self._deployment = output.parts, deployment
        before: list[Buffer] = [response_id(request)] if request else []
        if output.parameters:
            before.append(response_parameters(output.parameters))
        if len(self._parts) == 1:
            return [*before, self._described[0], data]
        pieces, at = [], 0
        for part in self._parts:
            pieces.append(data[at : at + part.size])
            at += part.size
        return before + interleave(self._described, pieces)


class Asked:
    """A model has been asked for the one answer of a call. See `octavo.server.grpc.call.Work`."""

    __slots__ = ("_call", "_deployment", "_known", "_pending", "_request", "_use")

    def __init__(self, call: Call, deployment: HostedDeployment, known: Known, request: Request, use: Use) -> None:
        self._call = call
        self._deployment = deployment
        self._known = known
        self._request = request
        self._use = use
        self._pending: Pending | None = None

    def ask(self, inference: Outlined) -> None:
        """Do. Raises InferenceError: it is not taken."""
        pending = self._deployment.client.begin(inference, self._on_end)
        if not pending.ended:
            self._pending = pending

    def end(self) -> None:
        """Nobody wants the answer any more, if there is none yet."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._deployment.client.leave(pending)
        self._use.end()
        if self._request.trace is not None:
            Traced(self._request.trace).end()

    def _on_end(self, pending: Pending) -> None:
        call = self._call
        if call.closed:
            return
        try:
            answer = self._known.answer(self._deployment, *pending.only(), self._request.id)
            if self._request.trace is not None:
                self._request.trace.event("GRPC_SEND_START")
            call.answer(answer)
        except InferenceError as error:
            call.fail(rpc_error(error))
        except Exception as error:
            call.fail(error)


class Inferences:
    """Requests of inference."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[bytes, Known] = {}
        server.deployments.subscribe(lambda _: self._known.clear())  # they know models that may be gone

    def infer(self, call: Call, message: Buffer) -> None:
        """ModelInfer: one result. Raises RpcError."""
        try:
            request = split(message)
            known = self._known.get(request.head)
            if known is None and len(request.head) <= INLINE_BYTES:
                known = self._learn(request.head, parse_head(request.head))
            if known is None or not known.head.plain:
                call.start(self._infer(call, request))
                return
            known.head.check_raw(len(request.raw))
            deployment = self._find(call, known.head)
            if self._server.tracer.on:
                request = with_trace(self._server, deployment.name, request, call.started)
            use = self._server.deployments.begin()
            use.choose(deployment)
            call.work = asked = Asked(call, deployment, known, request, use)
            asked.ask(self.outlined(call, deployment, known, request))
        except InferenceError as error:
            raise rpc_error(error) from None

    async def _infer(self, call: Call, request: Request) -> None:
        """The same, if it takes time besides the model's."""
        try:
            known = await self.read(request)
            deployment = self._find(call, known.head)
            request = with_trace(self._server, deployment.name, request, call.started)
            if request.trace is not None:
                call.work = Traced(request.trace)
            outputs = await self.compute(call, deployment, known, request)
        except InferenceError as error:
            raise rpc_error(error) from None
        head = response_id(request.id) + response_head(deployment.name, deployment.version)
        if request.trace is not None:
            request.trace.event("GRPC_SEND_START")
        call.answer(write_response(head + response_parameters(outputs.parameters), outputs))

    def _find(self, call: Call, head: InferHead) -> HostedDeployment:
        deployment = find(self._server.deployments, head.model, head.version)
        if loaded(deployment).streams:
            raise InferenceError(DECOUPLED, Code.UNSUPPORTED)
        call.deployment = deployment.name
        return deployment

    async def read(self, request: Request) -> Known:
        """What a request says. Raises InferenceError."""
        known, head = self._known.get(request.head), request.head
        if known is None:
            parsed = await off_loop(parse_head, head) if len(head) > INLINE_BYTES else parse_head(head)
            known = self._learn(head, parsed)
        known.head.check_raw(len(request.raw))
        return known

    def _learn(self, written: bytes, head: InferHead) -> Known:
        known = Known(head)
        if len(written) <= REMEMBERED_BYTES:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[written] = known
        return known

    async def compute(self, call: Call, deployment: HostedDeployment, known: Known, request: Request) -> Outputs:
        """The outputs of a request. Raises InferenceError."""
        use = self._server.deployments.begin()
        use.choose(deployment)
        try:
            if known.head.plain:
                return await deployment.client.infer(self.outlined(call, deployment, known, request))
            outputs = await deployment.client.infer(await self.inference(call, known.head, request))
            return await self.finish(deployment, known.head, outputs)
        finally:
            use.end()

    def outlined(self, call: Call, deployment: HostedDeployment, known: Known, request: Request) -> Outlined:
        """What is asked of the model, if no tensor lies in a region. Raises InferenceError."""
        head, client, raw = known.head, deployment.client, request.raw
        priority, timeout = self._treatment(call, head)
        details = with_parameters(named(head.options.details, request.id), call.head.parameters)
        if head.all_raw and (outline := known.fits(loaded(deployment), raw)) is not None:
            return Outlined(outline, raw, priority, timeout, details, request.trace)
        left, inputs = iter(raw), {}
        for each in head.inputs:
            inputs[each.name] = Encoded(each.datatype, each.shape, next(left) if each.data is None else each.data)
        found = client.outline(
            Inference(
                inputs=inputs,
                outputs=head.names,
                priority=priority,
                timeout=timeout,
                details=details,
                trace=request.trace,
            )
        )
        known.keep(found.outline)
        return found

    async def inference(self, call: Call, head: InferHead, request: Request) -> Inference:
        """What is asked of the model, wherever its inputs lie. Raises InferenceError."""
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
                data = request.raw[index]
                index += 1
            inputs[each.name] = Encoded(each.datatype, each.shape, data)
        priority, timeout = self._treatment(call, head)
        details = with_parameters(named(head.options.details, request.id), call.head.parameters)
        return Inference(
            inputs=inputs,
            outputs=head.names,
            priority=priority,
            timeout=timeout,
            details=details,
            trace=request.trace,
        )

    def _treatment(self, call: Call, head: InferHead) -> tuple[int, float]:
        """Its priority, and for how long it waits: in a queue no longer than its client, who leaves at a deadline."""
        timeout, remaining, key = head.options.timeout, call.remaining, call.head.key
        if remaining is not None:
            timeout = min(timeout, remaining) if timeout else remaining
        try:
            priority = self._server.priority(head.options.priority or None, key.priorities if key else None)
        except ApiError as error:
            raise InferenceError(str(error)) from None
        return priority, timeout

    async def finish(self, deployment: HostedDeployment, head: InferHead, outputs: Outputs) -> Outputs:
        """Outputs as they are wanted: as classes, or in regions, of which nothing but their shapes is sent."""
        info = loaded(deployment)
        labels = {spec.name: spec.labels for spec in info.outputs}
        finished = copy(outputs)
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
