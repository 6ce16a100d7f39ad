"""Models of repositories in processes of their own, on an event loop in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.hosting.client import HostedClient
from octavo.hosting.config import HostingConfig
from octavo.hosting.inference import Inference, Outputs
from octavo.hosting.local import LocalModels
from octavo.hosting.tensors import Place
from octavo.hosting.triton.layout import ModelFolder
from octavo.hosting.triton.planning import plan_model
from octavo.worker.supervisor import RestartPolicy
from tests.hosting.served import encoded

Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")


class Running:
    """Starts models of a repository when they are first asked for."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.models = self.run(self._models())
        self._clients: dict[str, HostedClient] = {}

    async def _models(self) -> LocalModels:
        return LocalModels(policy=RestartPolicy(first_delay=0.0))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of some work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def model(self, name: str, execution_timeout: float = 300.0) -> HostedClient:
        """A model that is ready. Raises InferenceError: it cannot be loaded."""
        return self.run(self._model(name, execution_timeout))

    async def ready(self, name: str) -> HostedClient:
        """The same, on the loop."""
        return await self._model(name, 300.0)

    async def _model(self, name: str, seconds: float) -> HostedClient:
        if name not in self._clients:
            config = configured(self._repository / name, seconds)
            self._clients[name] = self.models.start(name, config)
        await self._clients[name].ready()
        return self._clients[name]

    def close(self) -> None:
        """End everything."""
        self.run(self.models.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def running(repository: Path) -> Iterator[Running]:
    started = Running(repository)
    try:
        yield started
    finally:
        started.close()


def configured(folder: Path, execution_timeout: float = 300.0) -> HostingConfig:
    """How the newest version of a model is served."""
    planned = plan_model(ModelFolder(folder.name, folder))
    return replace(next(iter(planned.versions.values())), execution_timeout=execution_timeout)


def inference(inputs: dict[str, Any], **options: Any) -> Inference:
    """A request of arrays, or of texts for BYTES of one element."""
    return Inference(inputs={name: encoded(array_of(each)) for name, each in inputs.items()}, **options)


def array_of(value: Any) -> NDArray[Any]:
    return np.array([[value.encode()]], object) if isinstance(value, str) else np.asarray(value)


def arrays(outputs: Outputs) -> Arrays:
    """The outputs as arrays."""
    return {name: each.decode(Place(name, "it")).array for name, each in outputs.items()}


async def infer(client: HostedClient, inputs: dict[str, Any], **options: Any) -> Arrays:
    """The outputs for arrays."""
    return arrays(await client.infer(inference(inputs, **options)))


async def stream(
    client: HostedClient, inputs: dict[str, Any], **options: Any
) -> AsyncIterator[dict[str, NDArray[Any]]]:
    """All results for arrays."""
    async for outputs in client.stream(inference(inputs, **options)):
        yield arrays(outputs)
