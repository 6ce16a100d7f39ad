"""A language model as a model of tensors, so that ensembles and other models can ask it: under the names of Triton's
vLLM backend."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from octavo.deployments.choice import Delta, join
from octavo.deployments.deployment import Deployment
from octavo.deployments.generation import Generation
from octavo.engine.config import ModelInfo
from octavo.errors import InvalidRequest
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Inference, Outline, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor
from octavo.hosting.wire import Infer, Output, parts_of, tensors_of
from octavo.server.answer import prepare_request
from octavo.server.context import Server
from octavo.server.dialects.generate import Generate, GenerateRequest
from octavo.server.errors import ApiError
from octavo.server.generation import ServedGeneration
from octavo.server.request_context import RequestContext
from octavo.worker.control import WorkerState

log = logging.getLogger("octavo.server")

MAX_TOKENS = 16
"""vLLM's, for a request that does not say."""

_NUMBERS = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("max_tokens", "min_tokens", "seed", "ignore_eos"),
    )
)
"""Sampling parameters that may be written as texts."""


def _input(name: str, datatype: Datatype, value: str, *, optional: bool = True) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, dims=(1,), optional=optional, value=value)


_INPUTS = (
    _input("text_input", Datatype.BYTES, "str", optional=False),
    _input("stream", Datatype.BOOL, "bool"),
    _input("sampling_parameters", Datatype.BYTES, "json"),
    _input("exclude_input_in_output", Datatype.BOOL, "bool"),
)
_OUTPUTS = tuple(
    TensorSpec(name=name, datatype=datatype, dims=(-1,), optional=name != "text_output", value=value)
    for name, datatype, value in (
        ("text_output", Datatype.BYTES, "str"),
        ("finish_reason", Datatype.BYTES, "str"),
        ("num_input_tokens", Datatype.UINT32, "int"),
        ("num_output_tokens", Datatype.UINT32, "int"),
    )
)


class LanguageModelClient(ModelClient):
    """Asks a language model in a server's name.

    Args:
        streams: whether requests may ask for the text in pieces.
    """

    edition = ""

    def __init__(self, server: Server, deployment: Deployment, *, streams: bool) -> None:
        super().__init__()
        self._server = server
        self._deployment = deployment
        self.edition = f"{deployment.name} {secrets.token_hex(8)}"
        self._running: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count(secrets.randbits(31) << 32)
        self._info = HostedInfo(
            name=deployment.name, runtime="octavo", platform="vllm", inputs=_INPUTS, outputs=_OUTPUTS, streams=streams
        )

    @property
    def state(self) -> WorkerState:
        """As `ModelClient.state`."""
        return self._deployment.state

    @property
    def failure(self) -> str | None:
        """As `ModelClient.failure`."""
        return self._deployment.engine.failure

    @property
    def info(self) -> HostedInfo | None:
        """As `ModelClient.info`."""
        return None if self._deployment.engine.info is None else self._info

    @property
    def pending(self) -> int:
        """As `ModelClient.pending`."""
        return len(self._running)

    async def ready(self) -> HostedInfo:
        """As `ModelClient.ready`."""
        await self._deployment.engine.ready()
        return self._info

    def outline(self, inference: Inference) -> Outlined:
        """As `ModelClient.outline`."""
        inputs = inference.inputs
        items = self._info.signature.check(inputs, inference.outputs)
        for name, tensor in inputs.items():
            tensor.check(Place(name, self._info.name))
        tensors = [each.data for each in inputs.values()]
        outline = Outline(self._info, parts_of(inputs), sum(map(len, tensors)), items, tuple(inference.outputs))
        return Outlined(outline, tensors, inference.priority, inference.timeout, inference.details, inference.trace)

    def begin(self, inference: Inference | Outlined, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin`. Its scale of priorities is another one: requests have the usual one."""
        outlined = self.outline(inference) if isinstance(inference, Inference) else inference
        outline, number = outlined.outline, next(self._numbers)
        message = Infer(number, outline.parts, time.monotonic(), outline.outputs)
        loop = asyncio.get_running_loop()
        pending = Pending(loop, message, outlined.tensors, 1, 1, on_end)
        if outlined.trace is not None:
            pending.start_trace(outlined.trace, self._info.name, self.version)
        inputs = tensors_of(outline.parts, memoryview(b"".join(outlined.tensors)))
        task = self._running[number] = loop.create_task(self._run(pending, inputs))
        task.add_done_callback(lambda _: self._running.pop(number, None))
        return pending

    def begin_call(self, call: BodyCall, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin_call`."""
        raise InferenceError(f"model '{self._info.name}' takes tensors, and no bodies of its own")

    def leave(self, pending: Pending) -> None:
        """As `ModelClient.leave`."""
        if not pending.settled:
            pending.settle(error=InferenceError("Request cancelled", Code.CANCELLED))
            pending.on_end = None
            pending.end()
            self._running[pending.number].cancel()

    def close(self) -> None:
        """As `ModelClient.close`."""

    async def _run(self, pending: Pending, inputs: Mapping[str, Encoded]) -> None:
        error: InferenceError | None = None
        try:
            await self._generate(pending, inputs)
        except InferenceError as refused:
            error = refused
        except (ApiError, InvalidRequest) as refused:
            error = _inference_error(refused)
        except Exception:  # a defect of ours, of which whoever waits has to hear
            log.exception("a request for %s failed", self._info.name)
            error = InferenceError("The server had an error while processing this request.", Code.INTERNAL)
        if not pending.ended:
            if not pending.settled:
                pending.settle(error=error)
            pending.end()

    async def _generate(self, pending: Pending, inputs: Mapping[str, Encoded]) -> None:
        asked = {name: self._value(name, each) for name, each in inputs.items()}
        text, streamed = _text(asked["text_input"], "text_input"), bool(asked.get("stream"))
        if streamed and not self._info.streams:
            raise InferenceError(f"the text of '{self._info.name}' is wanted in pieces, where it can only come whole")
        body = self._body(text, asked.get("sampling_parameters", b"{}"))
        context = RequestContext(secrets.token_hex(16))
        context.deployment = self._deployment.name
        parse = partial(Generate().parse, body)
        prepared = await prepare_request(self._server, parse, context, size=len(text), admit=self._admit)
        deltas: list[Delta] = []
        with ServedGeneration(prepared, self._server.generation_metrics, context) as generation:
            generation.submit()
            async for step in generation.steps():
                if streamed:
                    pending.put(*self._result(pending, generation, join(step), last=False))
                else:
                    deltas += step
            if not streamed:
                whole = join(deltas)
                prefix = "" if asked.get("exclude_input_in_output") else text
                pending.settle(self._result(pending, generation, whole, prefix, last=True))

    def _admit(self, name: str) -> tuple[Deployment, ModelInfo]:
        """The model that is asked, also if its name is another's meanwhile. Raises InferenceError: it is loading."""
        info = self._deployment.engine.info
        if info is None:
            raise InferenceError(f"the model '{name}' is loading", Code.UNAVAILABLE)
        return self._deployment, info

    def _value(self, name: str, tensor: Encoded) -> Any:
        return tensor.decode(Place(name, self._info.name)).array.ravel()[0]

    def _body(self, text: str, parameters: bytes) -> GenerateRequest:
        """Raises InferenceError: parameters that there are none of, or with other values than they can have."""
        try:
            given = orjson.loads(parameters or b"{}")
            if not isinstance(given, dict):
                raise InferenceError("'sampling_parameters' is no JSON object")
            numbers = {name: _number(value) for name, value in given.items() if name in _NUMBERS}
            fields = {"max_tokens": MAX_TOKENS, **given, **numbers, "prompt": text, "model": self._info.name}
            return GenerateRequest.model_validate({**fields, "stream": False})
        except orjson.JSONDecodeError as error:
            raise InferenceError(f"'sampling_parameters' is no JSON: {error}") from None
        except (ValidationError, RequestValidationError) as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InferenceError(f"'sampling_parameters' has '{where}': {first['msg']}") from None

    def _result(
        self, pending: Pending, generation: Generation, delta: Delta, prefix: str = "", *, last: bool
    ) -> tuple[Output, memoryview]:
        assert isinstance(pending.message, Infer)
        finish, usage = delta.finish, generation.usage
        values: dict[str, Any] = {
            "text_output": (prefix + delta.text).encode("utf-8", "surrogatepass"),
            "finish_reason": b"" if finish is None else str(finish.reason).encode(),
            "num_input_tokens": usage.prompt_tokens,
            "num_output_tokens": usage.completion_tokens,
        }
        wanted = pending.message.outputs or ("text_output",)
        found = {spec.name: _encoded(spec, values[spec.name]) for spec in _OUTPUTS if spec.name in wanted}
        data = memoryview(b"".join([each.data for each in found.values()]))
        return Output(pending.number, parts_of(found), "", last), data


def _encoded(spec: TensorSpec, value: Any) -> Encoded:
    assert spec.datatype is not None
    return Encoded.of(Tensor(spec.datatype, np.array([value], spec.datatype.dtype)))


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InferenceError(f"'{name}' is no text in UTF-8") from None


def _number(value: Any) -> Any:
    """vLLM's backend takes numbers that are written as texts."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value.lower())
    except orjson.JSONDecodeError:
        return value


def _inference_error(error: ApiError | InvalidRequest) -> InferenceError:
    status = error.status_code if isinstance(error, ApiError) else 400
    code = {400: Code.INVALID_ARGUMENT, 404: Code.NOT_FOUND, 500: Code.INTERNAL}.get(status, Code.UNAVAILABLE)
    return InferenceError(str(error), code)
