"""Hosted models that compute in this process, in Python."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.client import HostedClient
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BatchStatistics, Body, BodyCall, Inference
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place
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
        self.called: BodyCall | None = None
        self.hold: asyncio.Event | None = None
        self.cancelled = 0
        self.waiting = 0
        self.error: InferenceError | None = None
        self.results = results
        self._compute = compute

    async def infer(self, inference: Inference) -> dict[str, Encoded]:
        if self.info is not None and self.info.streams:
            raise InferenceError(f"{self.info.name} streams")
        return await self._one(inference)

    async def stream(self, inference: Inference) -> AsyncIterator[dict[str, Encoded]]:
        for _ in range(self.results):
            yield await self._one(inference)
        if self.error:
            raise self.error

    async def call(self, call: BodyCall) -> Body:
        self.called = call
        return Body("application/json", bytes(call.body))

    async def _one(self, inference: Inference) -> dict[str, Encoded]:
        self.seen = inference
        if self.error and self.results == 1:
            self.statistics.failure += 1
            raise self.error
        assert self.info is not None
        items = self.info.signature.check(inference.inputs, inference.outputs)
        for name, each in inference.inputs.items():
            place = Place(name, self.info.name)
            each.check(place)
            each.decode(place)
        self.waiting += 1
        try:
            while self.hold is not None and not self.hold.is_set():
                await asyncio.wait_for(self.hold.wait(), 10)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.statistics.failure += 1
            self.statistics.canceled += 1
            raise
        finally:
            self.waiting -= 1
        found = self._compute(inference.inputs)
        statistics = self.statistics
        statistics.success += 1
        statistics.success_time += 3000
        statistics.queue += 1000
        statistics.compute += 2000
        statistics.inferences += items
        statistics.executions += 1
        statistics.last = 1.5
        before = statistics.batches.get(items, BatchStatistics())
        statistics.batches[items] = BatchStatistics(before.count + 1, before.compute + 2000)
        return {name: each for name, each in found.items() if not inference.outputs or name in inference.outputs}


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
