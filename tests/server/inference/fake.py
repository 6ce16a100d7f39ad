"""Hosted models that compute in this process, in Python."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.client import HostedClient
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Inference, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.pending import Pending, Result
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place
from octavo.hosting.wire import Call, Ended, Output, Timing, parts_of, tensors_of
from octavo.worker.control import WorkerState

Compute = Callable[[Mapping[str, Encoded]], dict[str, Encoded]]


class FakeClient(HostedClient):
    """Computes each request alone, with a function.

    Attributes:
        seen: the last request. hold: set to keep requests waiting until it is released. cancelled: requests given up.
    """

    def __init__(self, info: HostedInfo, compute: Compute, results: int = 1) -> None:
        super().__init__()
        self.state = WorkerState.READY
        self.info = info
        self.seen: Inference | None = None
        self.hold: asyncio.Event | None = None
        self.cancelled = 0
        self.waiting = 0
        self.error: InferenceError | ValueError | None = None
        self.results = results
        self._compute = compute
        self._running: dict[int, asyncio.Task[None]] = {}

    def begin(self, inference: Inference | Outlined, on_end: Callable[[Pending], None] | None = None) -> Pending:
        if isinstance(self.error, ValueError):
            raise self.error
        return super().begin(inference, on_end)

    def begin_call(self, call: BodyCall, on_end: Callable[[Pending], None] | None = None) -> Pending:
        if isinstance(self.error, ValueError):
            raise self.error
        return super().begin_call(call, on_end)

    def _place(self, pending: Pending) -> None:
        self._running[pending.number] = asyncio.create_task(self._run(pending))

    def _drop(self, pending: Pending) -> None:
        self._running.pop(pending.number).cancel()
        self.cancelled += 1

    async def _run(self, pending: Pending) -> None:
        message = pending.message
        if isinstance(message, Call):
            await self._echo(pending, message)
            return
        assert self.info is not None
        data = memoryview(b"".join(pending.tensors))
        inputs = tensors_of(message.parts, data)
        self.seen = Inference(
            inputs=inputs, outputs=message.outputs, priority=message.priority, timeout=message.timeout
        )
        try:
            if self.error and self.results == 1:
                raise self.error
            for name, each in inputs.items():
                each.decode(Place(name, self.info.name))
            if self.info.streams:
                for _ in range(self.results):
                    output, result = await self._result(message.number, inputs, message.outputs)
                    pending.put(msgspec.structs.replace(output, last=False), result)
                if self.error:
                    raise self.error
                self._succeed(pending, Ended(message.number, Timing(1000, 2000, pending.items, True)))
            else:
                output, result = await self._result(message.number, inputs, message.outputs)
                timed = msgspec.structs.replace(output, timing=Timing(1000, 2000, pending.items, True))
                self._succeed(pending, timed, (timed, result))
        except InferenceError as error:
            self._fail(pending, error)

    async def _echo(self, pending: Pending, message: Call) -> None:
        self.waiting += 1
        try:
            if self.hold is not None:
                await asyncio.wait_for(self.hold.wait(), 10)
        finally:
            self.waiting -= 1
        if isinstance(self.error, InferenceError):
            self._fail(pending, self.error)
            return
        output = Output(message.number, media_type="application/json", timing=Timing(1000, 2000, 1, True))
        self._succeed(pending, output, (output, memoryview(b"".join(pending.tensors))))

    def _succeed(self, pending: Pending, reply: Output | Ended, last: Result | None = None) -> None:
        before = self.statistics.success_time
        super()._succeed(pending, reply, last)
        self.statistics.success_time, self.statistics.last = before + 3000, 1.5

    async def _result(
        self, number: int, inputs: Mapping[str, Encoded], wanted: Sequence[str]
    ) -> tuple[Output, memoryview]:
        self.waiting += 1
        try:
            while self.hold is not None and not self.hold.is_set():
                await asyncio.wait_for(self.hold.wait(), 10)
        finally:
            self.waiting -= 1
        assert self.info is not None
        wanted = wanted or [each.name for each in self.info.outputs if not each.optional]
        found = {name: each for name, each in self._compute(inputs).items() if name in wanted}
        return Output(number, parts_of(found)), memoryview(b"".join([each.data for each in found.values()]))


def identity(name: str, specs: Mapping[str, tuple[Datatype, tuple[int, ...] | None]], **info: Any) -> HostedDeployment:
    """A model whose outputs are its inputs; IN becomes OUT in their names."""
    inputs = tuple(TensorSpec(name=each, datatype=datatype, dims=dims) for each, (datatype, dims) in specs.items())
    outputs = tuple(
        TensorSpec(name=each.replace("IN", "OUT"), datatype=datatype, dims=dims)
        for each, (datatype, dims) in specs.items()
    )
    return deployed(
        HostedInfo(name=name, runtime="python", platform="python", inputs=inputs, outputs=outputs, **info),
        lambda given: {each.replace("IN", "OUT"): tensor for each, tensor in given.items()},
    )


def deployed(info: HostedInfo, compute: Compute, **options: Any) -> HostedDeployment:
    """A model on offer."""
    return HostedDeployment(name=info.name, client=FakeClient(info, compute, **options), created=1)


def fake(deployment: HostedDeployment) -> FakeClient:
    """What is behind a model."""
    assert isinstance(deployment.client, FakeClient)
    return deployment.client


UNAVAILABLE = InferenceError("Exceeds maximum queue size", Code.UNAVAILABLE, retry_after=2.5)
