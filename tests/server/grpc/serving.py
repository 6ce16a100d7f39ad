"""The port for gRPC in a thread with a loop of its own, and models behind it that compute there."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as client
import uvloop

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.batching import Batching
from octavo.hosting.datatypes import Datatype
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import ANY, TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.server.context import Server
from octavo.server.grpc.server import GrpcServer
from octavo.server.listener import bind
from octavo.server.settings import ServerSettings
from tests.server.inference.fake import deployed, identity

SAMPLES: dict[Datatype, np.ndarray[Any, Any]] = {
    Datatype.BOOL: np.array([[True, False], [False, True]]),
    Datatype.BF16: np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    Datatype.FP16: np.array([[1.5, -2.0]], np.float16),
    Datatype.FP32: np.array([[1.5, np.nan], [np.inf, -0.0]], np.float32),
    Datatype.FP64: np.array([[1e300, -1.0]], np.float64),
    Datatype.BYTES: np.array([[b"", b"a\0b"], ["größer".encode(), b"\xff"]], np.object_),
    **{
        Datatype(name.upper()): np.array([[np.iinfo(name).min, np.iinfo(name).max]], name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
}
"""A tensor of every datatype."""


def models() -> list[HostedDeployment]:
    """One for every datatype, by its name; one of two inputs and batches of 8; and one that streams."""
    each_alone = [identity(each.value, {"IN": (each, None)}) for each in Datatype]
    pair = {
        "A": TensorSpec(name="A", datatype=Datatype.FP32, dims=(ANY,)),
        "B": TensorSpec(name="B", datatype=Datatype.INT32, dims=(2,), optional=True),
    }
    outputs = (
        TensorSpec(name="SUM", datatype=Datatype.FP32, dims=(ANY,)),
        TensorSpec(name="SAME", datatype=Datatype.FP32, dims=(ANY,)),
    )
    info = HostedInfo(
        name="pair",
        runtime="python",
        platform="python",
        inputs=tuple(pair.values()),
        outputs=outputs,
        batching=Batching(max_batch_size=8),
    )
    count = HostedInfo(
        name="count",
        runtime="python",
        platform="python",
        streams=True,
        inputs=(TensorSpec(name="IN", datatype=Datatype.INT32, dims=(1,)),),
        outputs=(TensorSpec(name="OUT", datatype=Datatype.INT32, dims=(1,)),),
    )
    return [*each_alone, deployed(info, _sum), deployed(count, _same, results=3)]


def _same(given: Mapping[str, Encoded]) -> dict[str, Encoded]:
    return {"OUT": given["IN"]}


def _sum(given: Mapping[str, Encoded]) -> dict[str, Encoded]:
    a = given["A"].decode(Place("A", "pair")).array
    return {"SUM": Encoded.of(Tensor(Datatype.FP32, a.sum(axis=1, keepdims=True))), "SAME": given["A"]}


@dataclass(slots=True)
class Served:
    """A server.

    Attributes:
        address: for clients. models: by name.
    """

    address: str
    models: Mapping[str, HostedDeployment]
    server: Server
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    def do(self, function: Callable[[], object]) -> None:
        """Call something where the server runs, and wait for it."""
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self.loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def client(self) -> client.InferenceServerClient:
        """Triton's client."""
        return client.InferenceServerClient(self.address)


@contextlib.contextmanager
def serving(*models: HostedDeployment, **settings: Any) -> Iterator[Served]:
    """Serve these models on a free port."""
    listener = bind("127.0.0.1", 0)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    started: list[Served] = []
    ready = threading.Event()

    async def serve() -> None:
        server = Server(ServerSettings(**settings).with_keys(), Deployments())
        server.deployments.offer(models)
        grpc = GrpcServer(server, listener, 1000)
        by_name, stop = {each.name: each for each in models}, asyncio.Event()
        started.append(Served(address, by_name, server, asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        await grpc.close()
        listener.close()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield started[0]
    finally:
        started[0].loop.call_soon_threadsafe(started[0].stop.set)
        thread.join()
