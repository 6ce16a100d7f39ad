"""How `soak.py` asks: over HTTP and over gRPC, with the same outcomes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

Array = NDArray[np.float32]

PATIENCE = 60.0
"""Seconds after which a request counts as lost."""

OK, LEFT, LOST = "OK", "LEFT", "LOST"

_CODES = {
    200: OK,
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    503: "UNAVAILABLE",
}
"""gRPC's names of what HTTP says."""

_BROKEN = ("Socket closed", "Connection reset", "Broken pipe", "failed to connect", "Stream removed", "GOAWAY")
"""What gRPC says where a connection has ended."""


@dataclass
class Ask:
    """A request. Attributes: leave: seconds after which the client wants nothing any more. timeout: microseconds."""

    model: str
    array: Array
    version: str = ""
    name: str = ""
    sequence: int = 0
    start: bool = False
    end: bool = False
    timeout: int = 0
    leave: float | None = None

    @property
    def parameters(self) -> dict[str, int | bool]:
        """As both protocols have them."""
        found: dict[str, int | bool] = {"timeout": self.timeout} if self.timeout else {}
        if self.sequence:
            found |= {"sequence_id": self.sequence, "sequence_start": self.start, "sequence_end": self.end}
        return found


@dataclass
class Outcome:
    """What came of a request. Attributes: code: by gRPC's name, or `LEFT`, or `LOST`. arrays: one for each response."""

    code: str
    message: str = ""
    arrays: list[Array] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)


class Wire(Protocol):
    """A client's connection."""

    async def infer(self, ask: Ask) -> Outcome:
        """One result."""
        ...

    async def stream(self, ask: Ask) -> Outcome:
        """Any number of results."""
        ...

    async def close(self) -> None:
        """End it; the next request has another one."""
        ...


class Http:
    """One connection at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def infer(self, ask: Ask) -> Outcome:
        described = {
            "id": ask.name,
            "inputs": [
                {
                    "name": "IN",
                    "datatype": "FP32",
                    "shape": ask.array.shape,
                    "parameters": {"binary_data_size": ask.array.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True, **ask.parameters},
        }
        head = json.dumps(described).encode()
        version = f"/versions/{ask.version}" if ask.version else ""
        length = f"Inference-Header-Content-Length: {len(head)}"
        found = await self.ask(f"/v2/models/{ask.model}{version}/infer", head + ask.array.tobytes(), length, ask.leave)
        if isinstance(found, Outcome):
            return found
        status, fields, body = found
        if status != 200:
            return Outcome(_CODES.get(status, str(status)), body.decode(errors="replace"))
        size = int(fields["inference-header-content-length"])
        said = json.loads(body[:size])
        [output] = said["outputs"]
        array = np.frombuffer(body[size:], np.float32).reshape(output["shape"])
        if said.get("id", "") != ask.name:
            return Outcome(LOST, f"the answer to {ask.name!r} is that of {said.get('id')!r}")
        return Outcome(OK, arrays=[array], parameters=said.get("parameters", {}))

    async def stream(self, ask: Ask) -> Outcome:
        body = json.dumps({"IN": float(ask.array.flat[0]), "id": ask.name}).encode()
        found = await self.ask(f"/v2/models/{ask.model}/generate_stream", body, "", ask.leave)
        if isinstance(found, Outcome):
            return found
        status, _, text = found
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith(b"data: ")]
        if status != 200:
            return Outcome(_CODES.get(status, str(status)), text.decode(errors="replace"))
        if events and "error" in events[-1]:
            return Outcome("INTERNAL", json.dumps(events[-1]))
        return Outcome(OK, arrays=[np.array(each["OUT"], np.float32).reshape(1, -1) for each in events])

    async def ask(
        self, path: str, body: bytes, more: str = "", leave: float | None = None, method: str = "POST"
    ) -> Outcome | tuple[int, dict[str, str], bytes]:
        """Status, head and body of an answer; an outcome if there is none."""
        try:
            async with asyncio.timeout(PATIENCE if leave is None else leave):
                return await self._ask(method, path, body, more)
        except TimeoutError:
            await self.close()
            return Outcome(LOST, f"no answer for {PATIENCE:g} s") if leave is None else Outcome(LEFT)
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            return Outcome(LOST, f"the connection ended without an answer: {error!r}")

    async def _ask(self, method: str, path: str, body: bytes, more: str) -> tuple[int, dict[str, str], bytes]:
        if self._streams is None or self._streams[0].at_eof() or self._streams[0].exception() is not None:
            await self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, *([more] if more else []), "", ""]).encode() + body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if "content-length" in fields:
            answer = await reader.readexactly(int(fields["content-length"]))
        else:
            answer = b"".join([piece async for piece in _chunks(reader)])
        if fields.get("connection") == "close":
            await self.close()
        return int(head[0].split(" ")[1]), fields, answer


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


class Grpc:
    """Triton's client."""

    def __init__(self, port: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self._client: InferenceServerClient | None = None

    @property
    def client(self) -> InferenceServerClient:
        """One with a connection of its own."""
        if self._client is None:
            own = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
            whole = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._client = InferenceServerClient(self._address, channel_args=[*own, *whole])
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def infer(self, ask: Ask) -> Outcome:
        try:
            async with asyncio.timeout(ask.leave):
                result = await self.client.infer(**_arguments(ask), client_timeout=PATIENCE)
        except TimeoutError:
            return Outcome(LEFT)
        except asyncio.CancelledError:  # as the client has it when it is left at just this moment
            if ask.leave is None:
                raise
            return Outcome(LEFT)
        except InferenceServerException as error:
            return _failed(error)
        response = result.get_response()
        if response.id != ask.name:
            return Outcome(LOST, f"the answer to {ask.name!r} is that of {response.id!r}")
        parameters = {name: each.int64_param for name, each in response.parameters.items()}
        return Outcome(OK, arrays=[result.as_numpy("OUT")], parameters=parameters)

    async def stream(self, ask: Ask) -> Outcome:
        async def asks() -> AsyncIterator[dict[str, Any]]:
            yield _arguments(ask)

        arrays: list[Array] = []
        stream = self.client.stream_infer(asks(), stream_timeout=PATIENCE)
        try:
            async with asyncio.timeout(ask.leave):
                async for result, error in stream:
                    if error is not None:
                        return _failed(error)
                    arrays.append(result.as_numpy("OUT"))
            return Outcome(OK, arrays=arrays)
        except TimeoutError:
            return Outcome(LEFT)
        except asyncio.CancelledError:
            if ask.leave is None:
                raise
            return Outcome(LEFT)
        except grpc.RpcError as error:  # which the client lets through here
            return _failed(InferenceServerException(error.details(), str(error.code())))
        finally:
            stream.cancel()


def _arguments(ask: Ask) -> dict[str, Any]:
    given = InferInput("IN", list(ask.array.shape), "FP32").set_data_from_numpy(ask.array)
    return {
        "model_name": ask.model,
        "inputs": [given],
        "model_version": ask.version,
        "request_id": ask.name,
        "timeout": ask.timeout or None,
        "sequence_id": ask.sequence,
        "sequence_start": ask.start,
        "sequence_end": ask.end,
    }


def _failed(error: InferenceServerException) -> Outcome:
    code = (error.status() or "StatusCode.INTERNAL").removeprefix("StatusCode.")
    message = error.message() or ""
    with contextlib.suppress(KeyError):
        if grpc.StatusCode[code] is grpc.StatusCode.UNAVAILABLE and any(each in message for each in _BROKEN):
            return Outcome(LOST, message)
        if grpc.StatusCode[code] is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Outcome(LOST, f"no answer for {PATIENCE:g} s")
    return Outcome(code, message)
