"""Models in processes of their own, and clients of them, on an event loop in a thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from octavo.hosting.client import HostedClient
from octavo.hosting.config import HostingConfig
from octavo.hosting.datatypes import Datatype
from octavo.hosting.inference import BodyCall, Inference
from octavo.hosting.launch import hosting_spec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.worker.control import WorkerStatus
from octavo.worker.launcher import LocalLauncher
from octavo.worker.supervisor import RestartPolicy, Supervisor

APP = Path(__file__).parent / "own_models.py"

T = TypeVar("T")


class Served:
    """Starts models when they are first asked for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.supervisor = self.run(self._supervisor())
        self._clients: dict[str, HostedClient] = {}

    async def _supervisor(self) -> Supervisor:
        return Supervisor(LocalLauncher(), policy=RestartPolicy(first_delay=0.0))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of some work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def model(self, name: str, **config: Any) -> HostedClient:
        """A client of a model of `own_models.py`, or of the file that `config` names, that has been loaded."""
        return self.run(self._model(name, config))

    async def _model(self, name: str, config: dict[str, Any]) -> HostedClient:
        key = f"{name} {sorted(config.items())}"
        if key not in self._clients:
            client = self._clients[key] = HostedClient(on_culprit=self.supervisor.culprit_found)

            def note(status: WorkerStatus) -> None:
                if status.name == key:
                    client.update(status)

            client.add(key)
            self.supervisor.subscribe(note)
            config = {"model": f"{APP}:{name}", **config}
            self.supervisor.add(hosting_spec(key, name.lower(), HostingConfig(**config)))
        client = self._clients[key]
        await client.ready()
        return client

    def close(self) -> None:
        """End everything."""
        self.run(self.supervisor.stop())
        for client in self._clients.values():
            self.loop.call_soon_threadsafe(client.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def serving() -> Iterator[Served]:
    served = Served()
    try:
        yield served
    finally:
        served.close()


async def ask(client: HostedClient, **body: Any) -> Any:
    """The answer to a body."""
    return orjson.loads((await client.call(BodyCall(media_type="application/json", body=orjson.dumps(body)))).data)


async def infer(client: HostedClient, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The outputs for arrays, as arrays."""
    outputs = await client.infer(Inference(inputs={name: encoded(each) for name, each in inputs.items()}, **options))
    return {name: each.decode(Place(name, "it")).array for name, each in outputs.items()}


def encoded(array: Any) -> Encoded:
    array = np.asarray(array)
    return Encoded.of(Tensor(Datatype.of(array.dtype), array))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not condition():
        await asyncio.sleep(0.005)
