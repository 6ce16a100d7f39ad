"""Hosted models as functions of items that JSON can say."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import orjson

from octavo.hosting.errors import InferenceError
from octavo.hosting.inference import BodyCall, Inference
from octavo.hosting.info import HostedInfo
from octavo.hosting.model_client import ModelClient
from octavo.hosting.tensors import Encoded, Place, Tensor, written
from octavo.server.inference.nested import from_tensor, to_tensor
from octavo.server.offload import off_loop

AT_ONCE = 64
"""Requests to the model that one request makes at a time."""

JSON = "application/json"

T = TypeVar("T")
R = TypeVar("R")

Tensors = Mapping[str, Tensor]
Outputs = Mapping[str, Encoded]


class ItemModel(ABC):
    """A model as `:predict` has it.

    Raises from all methods:
        InferenceError: as `ModelClient.infer`; or the JSON is none of the model's.
    """

    def __init__(self, client: ModelClient, info: HostedInfo, priority: int) -> None:
        self._client = client
        self._info = info
        self._priority = priority

    @abstractmethod
    async def item(self, value: Any) -> Any:
        """What comes of one item."""

    @abstractmethod
    async def instances(self, values: Sequence[Any]) -> list[Any]:
        """What comes of each of several items."""

    @abstractmethod
    async def columns(self, value: Any) -> Any:
        """What comes of several items, the values of each input together."""


class BodyModel(ItemModel):
    """One that takes JSON itself: an item is a body."""

    async def item(self, value: Any) -> Any:
        """See `ItemModel`. A value that is no object is that of the one field that there must be."""
        required = (self._info.body or {}).get("required", [])
        if not isinstance(value, dict) and len(required) == 1:
            value = {required[0]: value}
        call = BodyCall(media_type=JSON, body=orjson.dumps(value), priority=self._priority)
        return orjson.loads((await self._client.call(call)).data)

    async def instances(self, values: Sequence[Any]) -> list[Any]:
        """See `ItemModel`."""
        return await _for_each(self.item, values)

    async def columns(self, value: Any) -> Any:
        """Its own business: several items are one body to it."""
        return await self.item(value)


class TensorModel(ItemModel):
    """One that takes tensors: an item is an object with a nested list for each, or that of the only one."""

    async def item(self, value: Any) -> Any:
        """The outputs by name, however many there are."""
        inputs = await off_loop(lambda: self._encoded([self._one(value)]))
        [row] = await off_loop(self._rows, await self._infer(inputs), 1)
        return row

    async def instances(self, values: Sequence[Any]) -> list[Any]:
        """Items of one shape go to the model together, as many at a time as it takes."""
        items = await off_loop(lambda: [self._tensors(value) for value in values])
        alike = (
            len({frozenset((name, each.datatype, each.shape) for name, each in item.items()) for item in items}) == 1
        )
        size = max(self._info.max_batch_size, 1) if alike else 1
        batches = [items[at : at + size] for at in range(0, len(items), size)]
        outputs = await _for_each(self._infer, await off_loop(lambda: [self._encoded(each) for each in batches]))
        counts = map(len, batches)
        rows = await off_loop(lambda: [self._rows(each, count) for each, count in zip(outputs, counts, strict=True)])
        return [_alone(row) for some in rows for row in some]

    async def columns(self, value: Any) -> Any:
        """The outputs by name, or the only one."""
        inputs = await off_loop(lambda: {name: Encoded.of(each) for name, each in self._tensors(value).items()})
        outputs = await self._infer(inputs)
        return _alone(await off_loop(self._written, outputs))

    def __init__(self, client: ModelClient, info: HostedInfo, priority: int) -> None:
        super().__init__(client, info, priority)
        self._specs = {spec.name: spec for spec in info.inputs}

    def _one(self, value: Any) -> Tensors:
        """The inputs of one item. Raises InferenceError: they have other dimensions, such as one of a batch."""
        tensors = self._tensors(value)
        for name, tensor in tensors.items():
            spec = self._specs[name]
            if spec.dims is not None and not spec.admits(tensor.shape):
                model = self._info.name
                raise InferenceError(
                    f"one item of '{name}' has the shape {written(spec.dims)}, and this one {written(tensor.shape)}; "
                    f"several items go to /v1/models/{model}:predict or /v2/models/{model}/infer",
                    field=name,
                )
        return tensors

    def _tensors(self, value: Any) -> Tensors:
        """The inputs that are written in JSON."""
        if len(self._specs) == 1 and not isinstance(value, dict):
            value = dict.fromkeys(self._specs, value)
        if not isinstance(value, dict):
            raise InferenceError(f"an item of model '{self._info.name}' is an object with its inputs by name")
        for name in value:
            if name not in self._specs:
                raise InferenceError(f"unexpected inference input '{name:.300}' for model '{self._info.name}'")
        return {name: to_tensor(self._specs[name], each, Place(name, self._info.name)) for name, each in value.items()}

    def _encoded(self, items: Sequence[Tensors]) -> dict[str, Encoded]:
        """Items of one shape; a single one if the model has no batch dimension."""
        if not self._info.max_batch_size:
            return {name: Encoded.of(each) for name, each in items[0].items()}
        return {
            name: Encoded.of(Tensor(each.datatype, np.stack([item[name].array for item in items])))
            for name, each in items[0].items()
        }

    async def _infer(self, inputs: Mapping[str, Encoded]) -> Outputs:
        return await self._client.infer(Inference(inputs=inputs, priority=self._priority))

    def _written(self, outputs: Outputs) -> dict[str, Any]:
        return {name: from_tensor(each, Place(name, self._info.name)) for name, each in outputs.items()}

    def _rows(self, outputs: Outputs, count: int) -> list[dict[str, Any]]:
        """The outputs of each item."""
        written = self._written(outputs)
        if not self._info.max_batch_size:
            return [written]
        return [{name: each[row] for name, each in written.items()} for row in range(count)]


def _alone(outputs: dict[str, Any]) -> Any:
    """The only one of several needs no name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


async def _for_each(do: Callable[[T], Coroutine[Any, Any, R]], values: Sequence[T]) -> list[R]:
    """What comes of each value. Raises the first error, and gives up the others."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(value: T) -> R:
        async with free:
            return await do(value)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(value)) for value in values]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
