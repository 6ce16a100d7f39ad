"""What is asked of the servers, and which figures are read off the answers."""

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.service_pb2 as pb
import tritonclient.http
import uvloop
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from http1 import HttpClient
from http2 import GrpcClient
from load import Answers, Client, Clock, LoadError, Look, load
from report import Figure
from servers import Server

ALL = ("octavo", "triton", "litserve", "bentoml", "fastapi")
INFERENCE_PROTOCOL = ("octavo", "triton", "octavo-repository")
REPOSITORY = ("octavo-repository", "triton")
TEXT = "A sheet folded into sixteen pages."


PER_SECOND = Figure("requests/s", "{:,.0f}")
P50 = Figure("p50, ms", "{:,.2f}")
P99 = Figure("p99, ms", "{:,.2f}")
BATCH = Figure("mean batch", "{:.1f}")
GIGABYTES = Figure("GB/s, in and out", "{:.2f}")
COST = Figure("server CPU, µs each", "{:,.0f}")


@dataclass(frozen=True)
class Workload:
    """Rows of the table.

    Attributes:
        model: that is asked. values: a request's tensor. clients: that ask at the same time.
        way: "http" and "grpc" are the Open Inference Protocol, with "tritonclient" in front through that library;
            "json" is each server's own.
        figures: that are shown. unbatched: the title of the same without batching, to tell what that gains.
    """

    name: str
    model: str
    way: str
    clients: int
    figures: tuple[Figure, ...]
    systems: tuple[str, ...] = ("octavo", "triton")
    width: int = 16
    unbatched: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.way}, {self.clients} client{'s' * (self.clients > 1)}"

    @property
    def values(self) -> NDArray[np.float32]:
        return _values(self.width)

    def run(self, server: Server, seconds: float) -> Answers:
        """Ask the server for so long. Raises LoadError."""
        if self.way.startswith("tritonclient"):
            return _tritonclient(self, server, seconds)
        look: Look | None = None
        if BATCH in self.figures:
            look = _batch_of_json if self._speaks_json(server) else _batch_of_tensor
        client, requests = self._requests(server)
        return uvloop.run(load(server.port + (self.way == "grpc"), client, requests, Clock(seconds, look)))

    def read(self, figure: Figure, answers: Answers) -> float:
        """A figure of the answers."""
        return _READ[figure](answers, self)

    def right(self, body: bytes) -> bool:
        """Whether an answer is what this model gives."""
        if self.model == "identity":
            return self.values.tobytes() in body
        return self.model != "upper" or TEXT.upper().encode() in body

    def _speaks_json(self, server: Server) -> bool:
        return self.way == "json" or server.system not in INFERENCE_PROTOCOL

    def _requests(self, server: Server) -> tuple[Callable[[bytes, Clock], Client], list[bytes]]:
        """What each client sends again and again."""
        if self.model == "accumulator":
            return SequenceClient, [
                _sequence_request(self.model, self.values, each + 1) for each in range(self.clients)
            ]
        if self.way == "grpc":
            return GrpcClient, [_grpc_request(self.model, self.values)] * self.clients
        if self._speaks_json(server):
            return HttpClient, [_json_request(server.system, self.model, self.values)] * self.clients
        return HttpClient, [_http_request(self.model, self.values)] * self.clients


@cache
def _values(width: int) -> NDArray[np.float32]:
    """A request's tensor, FP32[1, width]."""
    return np.random.default_rng(0).random((1, width), np.float32)


def _http_request(model: str, values: NDArray[np.float32], **parameters: object) -> bytes:
    described = {
        "inputs": [
            {"name": "x", "shape": values.shape, "datatype": "FP32", "parameters": {"binary_data_size": values.nbytes}}
        ],
        "parameters": {"binary_data_output": True, **parameters},
    }
    head = json.dumps(described).encode()
    header = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return _post(f"/v2/models/{model}/infer", header, head + values.tobytes())


def _sequence_request(model: str, values: NDArray[np.float32], sequence: int) -> bytes:
    """The first request of a sequence; see `SequenceClient`."""
    return _http_request(model, values, sequence_id=sequence, sequence_start=True)


class SequenceClient(HttpClient):
    """Asks on and on for one sequence."""

    def answered(self, body: Callable[[], bytes]) -> None:
        self.request = self.request.replace(b'"sequence_start": true', b'"sequence_end": false ')  # which is as long
        super().answered(body)


def _grpc_request(model: str, values: NDArray[np.float32]) -> bytes:
    request: Any = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    message: bytes = request.SerializeToString()
    return message


def _json_request(system: str, model: str, values: NDArray[np.float32]) -> bytes:
    x: object = values[0].tolist() if model.startswith("mlp") else 1.0
    if system == "bentoml":
        x = [x]  # a request has a batch of its own there
    path = {"octavo": f"/v1/models/{model}/predict", "fastapi": f"/{model}"}.get(system, "/predict")
    body = json.dumps({"text": TEXT} if model == "upper" else {"x": x}).encode()
    return _post(path, "Content-Type: application/json\r\n", body)


def _post(path: str, header: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _tritonclient(work: Workload, server: Server, seconds: float) -> Answers:
    """One request after the other through the library; more clients than one would measure Python's threads."""
    protocol: Any = tritonclient.grpc if work.way.endswith("grpc") else tritonclient.http
    client = protocol.InferenceServerClient(f"127.0.0.1:{server.port + work.way.endswith('grpc')}")
    given = protocol.InferInput("x", work.values.shape, "FP32")
    clock, began = Clock(seconds), time.process_time()
    now: float | None = time.perf_counter()
    try:
        while now is not None:
            given.set_data_from_numpy(work.values)  # a part of what a call costs
            output = client.infer(work.model, [given]).as_numpy("output")
            now = clock.answered(now, output.tobytes)
    except InferenceServerException as error:
        raise LoadError(str(error.message())) from None
    finally:
        client.close()
    clock.answers.client_cpu = time.process_time() - began
    return clock.answers


def _batch_of_tensor(body: bytes) -> float:
    size: float = struct.unpack("<f", body[-4:])[0]
    return size


def _batch_of_json(body: bytes) -> float:
    found = re.search(rb"\d+", body)
    return float(found[0]) if found else float("nan")


def _mean_batch(answers: Answers) -> float:
    """Requests of a batch, the mean over batches: every answer of a batch of n says n."""
    return len(answers.seen) / sum(1 / size for size in answers.seen)


_READ: dict[Figure, Callable[[Answers, Workload], float]] = {
    PER_SECOND: lambda answers, _: answers.per_second,
    P50: lambda answers, _: answers.percentile(50) * 1e3,
    P99: lambda answers, _: answers.percentile(99) * 1e3,
    BATCH: lambda answers, _: _mean_batch(answers),
    GIGABYTES: lambda answers, work: 2 * work.values.nbytes * answers.per_second / 1e9,
    COST: lambda answers, _: answers.server_cpu / answers.all * 1e6,
}


def _over_clients(work: Workload, *counts: int) -> list[Workload]:
    return [replace(work, clients=count) for count in counts]


def _with_and_without_batching(work: Workload, name: str, model: str, systems: tuple[str, ...]) -> list[Workload]:
    alone = replace(work, name=name, model=model, systems=systems)
    return [replace(work, unbatched=alone.title), alone]


def _identity(way: str) -> list[Workload]:
    one = Workload("identity", "identity", way, 1, (P50, COST))
    several = replace(one, figures=(PER_SECOND, P50, COST))
    return [one, replace(one, way=f"tritonclient {way}", figures=(P50,)), *_over_clients(several, 8, 32)]


_SLEEPER = Workload("10 ms, batches of 8", "sleeper", "http", 0, (PER_SECOND, P50, P99, BATCH), ALL[:4])
_MLP = Workload("MLP", "mlp", "http", 32, (PER_SECOND, P50, P99), ("octavo", "triton", "litserve"), width=784)
_LARGE = Workload("1 MB", "identity", "http", 0, (PER_SECOND, GIGABYTES, COST), width=250_000)
_TEXT = Workload("text", "upper", "json", 0, (PER_SECOND, P50, COST), ("octavo", "litserve", "bentoml", "fastapi"))

_ENSEMBLE = Workload("ensemble of three", "ensemble", "http", 0, (PER_SECOND, P50, COST), REPOSITORY)
_SEQUENCE = Workload("64 sequences", "accumulator", "http", 64, (PER_SECOND, P50, COST), REPOSITORY)

WORKLOADS: dict[str, list[Workload]] = {
    "identity": [*_identity("http"), *_identity("grpc")],
    "sleeper": [
        each
        for work in _over_clients(_SLEEPER, 8, 32)
        for each in _with_and_without_batching(work, "10 ms, unbatched", "sleeper_alone", ALL)
    ],
    "mlp": _with_and_without_batching(_MLP, "MLP, unbatched", "mlp_alone", (*_MLP.systems, "fastapi")),
    "large": [*_over_clients(_LARGE, 1, 4), *_over_clients(replace(_LARGE, way="grpc"), 1, 4)],
    "text": _over_clients(_TEXT, 1, 8, 32),
    "repository": [replace(each, systems=REPOSITORY) for each in (*_identity("http"), *_identity("grpc"))],
    "ensemble": [*_over_clients(_ENSEMBLE, 1, 8, 32), *_over_clients(replace(_ENSEMBLE, way="grpc"), 1, 8, 32)],
    "ensemble-onnx": _over_clients(replace(_ENSEMBLE, name="ensemble of three, ONNX", model="ensemble_onnx"), 1, 8, 32),
    "sequence": [_SEQUENCE],
}
"""What is measured with the same servers, in turn."""
