"""`inference.GRPCInferenceService` but for inference itself: health, metadata, and the extensions of Triton."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.tensors import Buffer
from octavo.protos.messages import message, service
from octavo.server.context import Server
from octavo.server.grpc.call import Call, Method
from octavo.server.grpc.errors import rpc_error
from octavo.server.grpc.infer import Inferences
from octavo.server.grpc.infer_stream import InferenceStreams
from octavo.server.grpc.status import RpcError, Status
from octavo.server.inference import metadata
from octavo.server.inference.control import load_model, read_parameters, unload_model
from octavo.server.inference.log_settings import change_log_settings
from octavo.server.inference.lookup import confirms, find, loaded, statistics_of, versions_of
from octavo.server.inference.model_config import model_config
from octavo.server.inference.model_stats import model_statistics
from octavo.server.inference.shared_memory import require_no_region
from octavo.server.inference.trace_settings import change_trace_settings

NAME = "inference.GRPCInferenceService"

_APIS = {
    method: api
    for api, methods in {
        "health": ("ServerLive", "ServerReady", "ModelReady"),
        "metadata": ("ServerMetadata", "ModelMetadata"),
        "inference": ("ModelInfer", "ModelStreamInfer"),
        "model-config": ("ModelConfig",),
        "model-repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        "statistics": ("ModelStatistics",),
        "shared-memory": (
            *(f"SystemSharedMemory{what}" for what in ("Status", "Register", "Unregister")),
            *(f"CudaSharedMemory{what}" for what in ("Status", "Register", "Unregister")),
        ),
        "trace": ("TraceSetting",),
        "logging": ("LogSettings",),
    }.items()
    for method in methods
}
"""The part of the protocol that each method belongs to."""

Answer = Callable[[Any], Mapping[str, Any]]
"""Answers a message with the fields of another."""


class InferenceService:
    """The methods."""

    def __init__(self, server: Server, is_server_ready: Callable[[], bool]) -> None:
        self._server = server
        self._is_server_ready = is_server_ready
        self._inferences = Inferences(server)
        self._streams = InferenceStreams(server, self._inferences)

    def methods(self) -> dict[str, Method]:
        """By path."""
        answers: dict[str, Answer] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._is_server_ready()},
            "ServerMetadata": lambda _: metadata.server_metadata(self._server.settings.server_id),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "RepositoryIndex": self._repository_index,
            "SystemSharedMemoryStatus": self._shared_memory_status,
            "SystemSharedMemoryRegister": self._register_shared_memory,
            "SystemSharedMemoryUnregister": self._unregister_shared_memory,
            "CudaSharedMemoryStatus": self._cuda_memory_status,
            "CudaSharedMemoryRegister": self._refuse_cuda,
            "CudaSharedMemoryUnregister": lambda _: {},
        }
        methods = {name: _unary(name, answer) for name, answer in answers.items()}
        for name, do in (
            ("ModelReady", self._model_ready),
            ("ModelStatistics", self._model_statistics),
            ("RepositoryModelLoad", self._load_model),
            ("RepositoryModelUnload", self._unload_model),
            ("LogSettings", self._log_settings),
            ("TraceSetting", self._trace_setting),
        ):
            methods[name] = _later(name, do)
        methods["ModelInfer"] = Method(unary=self._inferences.infer, works=True)
        methods["ModelStreamInfer"] = Method(streaming=self._streams.stream, works=True)
        return {f"/{NAME}/{name}": replace(method, api=_APIS[name]) for name, method in methods.items()}

    def _find(self, request: Any) -> HostedDeployment:
        return find(self._server.deployments, request.name, request.version)

    async def _model_ready(self, request: Any) -> Mapping[str, Any]:
        """A model that is not there is not ready: Triton's clients ask until one is."""
        try:
            return {"ready": await confirms(self._find(request))}
        except InferenceError as error:
            if error.code is Code.NOT_FOUND:
                return {"ready": False}
            raise

    def _model_metadata(self, request: Any) -> Mapping[str, Any]:
        deployment = self._find(request)
        versions = versions_of(self._server.deployments, request.name)
        return metadata.model_metadata(deployment, loaded(deployment), versions)

    def _model_config(self, request: Any) -> Mapping[str, Any]:
        deployment = self._find(request)
        return {"config": model_config(deployment, loaded(deployment))}

    async def _model_statistics(self, request: Any) -> Mapping[str, Any]:
        """Of one model, or of all."""
        deployments = self._server.deployments
        models = deployments.hosted
        if request.name:
            models = statistics_of(deployments, request.name, request.version)
        return {"model_stats": await model_statistics(self._server, models)}

    def _repository_index(self, request: Any) -> Mapping[str, Any]:
        _refuse_repository(request)
        deployments = self._server.deployments
        return {"models": metadata.repository_index(deployments.hosted, deployments.listed, ready=request.ready)}

    async def _load_model(self, request: Any) -> Mapping[str, Any]:
        _refuse_repository(request)
        parameters = {name: _value(each) for name, each in request.parameters.items()}
        await load_model(self._server.administer, request.model_name, read_parameters(parameters))
        return {}

    async def _unload_model(self, request: Any) -> Mapping[str, Any]:
        _refuse_repository(request)
        dependents = request.parameters["unload_dependents"].bool_param
        await unload_model(self._server.administer, request.model_name, dependents=dependents)
        return {}

    def _shared_memory_status(self, request: Any) -> Mapping[str, Any]:
        return {"regions": {each["name"]: each for each in self._server.shared_memory.status(request.name)}}

    def _register_shared_memory(self, request: Any) -> Mapping[str, Any]:
        self._server.shared_memory.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    def _unregister_shared_memory(self, request: Any) -> Mapping[str, Any]:
        self._server.shared_memory.unregister(request.name)
        return {}

    def _cuda_memory_status(self, request: Any) -> Mapping[str, Any]:
        require_no_region(request.name)
        return {"regions": {}}

    def _refuse_cuda(self, request: Any) -> Mapping[str, Any]:
        message = f"failed to register CUDA shared memory region: '{request.name:.100}', GPUs not supported"
        raise RpcError(Status.INVALID_ARGUMENT, message)

    async def _trace_setting(self, request: Any) -> Mapping[str, Any]:
        wanted = {name: _trace_value(name, each.value) for name, each in request.settings.items()}
        settings = await change_trace_settings(self._server, request.model_name, wanted)
        listed = {name: value if isinstance(value, list) else [value] for name, value in settings.items()}
        return {"settings": {name: {"value": value} for name, value in listed.items()}}

    async def _log_settings(self, request: Any) -> Mapping[str, Any]:
        wanted = {name: _chosen(each) for name, each in request.settings.items()}
        settings = await change_log_settings(self._server.administer, wanted)
        return {"settings": {name: {_kind(value): value} for name, value in settings.items()}}


def _kind(value: object) -> str:
    return "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise RpcError(Status.UNIMPLEMENTED, "'repository_name' specification is not supported")


def _value(parameter: Any) -> object:
    """Of a `ModelRepositoryParameter`."""
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")


def _trace_value(name: str, values: Sequence[str]) -> object:
    """Of a `TraceSettingRequest.SettingValue`; none clears the setting. Raises InferenceError: there are too many."""
    if not values:
        return None
    if name == "trace_level":
        return list(values)
    if len(values) > 1:
        raise InferenceError(f"expect only 1 value for '{name:.100}', and there are {len(values)}")
    return values[0]


def _chosen(setting: Any) -> object:
    """Of a `LogSettingsRequest.SettingValue`; None if it has none."""
    chosen = setting.WhichOneof("parameter_choice")
    return getattr(setting, chosen) if chosen else None


def _later(name: str, do: Callable[[Any], Awaitable[Mapping[str, Any]]]) -> Method:
    """A method that does something that takes long. It goes on if its caller leaves."""
    method = service(NAME).methods_by_name[name]
    request_class, response_class = message(method.input_type.full_name), message(method.output_type.full_name)

    async def follow(call: Call, request: Any) -> None:
        try:
            fields = await do(request)
            call.answer([ParseDict(fields, response_class()).SerializeToString()])
        except InferenceError as error:
            call.fail(rpc_error(error))
        except Exception as error:
            call.fail(error)

    def unary(call: Call, written: Buffer) -> None:
        try:
            request = request_class.FromString(written)
        except DecodeError:
            raise RpcError(Status.INVALID_ARGUMENT, f"the request is no {method.input_type.full_name}") from None
        task = asyncio.create_task(follow(call, request))
        _following.add(task)
        task.add_done_callback(_following.discard)

    return Method(unary=unary)


_following: set[asyncio.Task[None]] = set()
"""Held until they have ended."""


def _unary(name: str, answer: Answer) -> Method:
    """A method that reads and writes whole messages."""
    method = service(NAME).methods_by_name[name]
    request_class, response_class = message(method.input_type.full_name), message(method.output_type.full_name)

    def unary(call: Call, written: Buffer) -> Sequence[Buffer]:
        try:
            fields = answer(request_class.FromString(written))
        except DecodeError:
            raise RpcError(Status.INVALID_ARGUMENT, f"the request is no {method.input_type.full_name}") from None
        except InferenceError as error:
            raise rpc_error(error) from None
        return [ParseDict(fields, response_class()).SerializeToString()]

    return Method(unary=unary)
