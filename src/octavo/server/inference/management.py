"""What is asked about the server and its models, and the few things that clients may change."""

from collections.abc import Mapping
from typing import Any

from octavo.hosting.errors import Code, InferenceError
from octavo.server.errors import invalid
from octavo.server.inference.body import read_body, read_json_object, read_object
from octavo.server.inference.control import load_model, read_parameters, unload_model
from octavo.server.inference.http import PLAIN, Call
from octavo.server.inference.log_settings import change_log_settings, log_settings
from octavo.server.inference.lookup import confirms, find, is_ready, loaded, statistics_of, versions_of
from octavo.server.inference.metadata import (
    model_metadata,
    repository_index,
    server_metadata,
)
from octavo.server.inference.model_config import model_config
from octavo.server.inference.model_stats import model_statistics
from octavo.server.inference.shared_memory import require_no_region
from octavo.server.inference.trace_settings import change_trace_settings, trace_settings
from octavo.server.operations import server_problem

CUDA_IS_ABSENT = "failed to register CUDA shared memory region: '{}', GPUs not supported"


async def about_server(call: Call) -> None:
    """Its name, version and extensions."""
    await call.reply_json(server_metadata(call.server.settings.server_id))


async def live(call: Call) -> None:
    """Whether the server is alive."""
    await call.reply((), PLAIN)


async def ready(call: Call) -> None:
    """Whether the server takes new work, for all of its models."""
    if problem := server_problem(call.server):
        raise invalid(problem.sentence)
    await call.reply((), PLAIN)


async def list_models(call: Call) -> None:
    """The names, as KServe lists them."""
    await call.reply_json({"models": list(dict.fromkeys(each.name for each in call.server.deployments.hosted))})


async def about_model(call: Call) -> None:
    """What a model takes and gives."""
    model = find(call.server.deployments, call.name, call.version)
    await call.reply_json(model_metadata(model, loaded(model), versions_of(call.server.deployments, call.name)))


async def model_ready(call: Call) -> None:
    """Whether a model would compute a request now."""
    try:
        is_so = await confirms(find(call.server.deployments, call.name, call.version))
    except InferenceError:
        is_so = False
    if not is_so:
        raise invalid("Model version not ready")
    await call.reply((), PLAIN)


async def configuration(call: Call) -> None:
    """A model's configuration."""
    model = find(call.server.deployments, call.name, call.version)
    await call.reply_json(model_config(model, loaded(model)))


async def statistics(call: Call) -> None:
    """A model's statistics."""
    models = statistics_of(call.server.deployments, call.name, call.version)
    await call.reply_json({"model_stats": await model_statistics(call.server, models)})


async def all_statistics(call: Call) -> None:
    """The statistics of all models that are ready."""
    ready_ones = filter(is_ready, call.server.deployments.hosted)
    await call.reply_json({"model_stats": await model_statistics(call.server, ready_ones)})


async def index(call: Call) -> None:
    """What there is in the repository."""
    wanted = (await read_object(call)).get("ready", False)
    if not isinstance(wanted, bool):
        raise invalid("Invalid value for 'ready': expected a boolean")
    deployments = call.server.deployments
    await call.reply_json(repository_index(deployments.hosted, deployments.listed, ready=wanted))


async def load(call: Call) -> None:
    """Load a model of a repository, or load it again."""
    body = read_json_object(await read_body(call))
    await load_model(call.server.administer, call.name, read_parameters(_parameters(body)))
    await call.reply(())


async def unload(call: Call) -> None:
    """Offer a model of a repository no longer."""
    parameters = _parameters(await read_object(call))
    dependents = parameters.get("unload_dependents", False)
    if not isinstance(dependents, bool):
        raise invalid("Invalid value for 'unload_dependents': expected a boolean")
    await unload_model(call.server.administer, call.name, dependents=dependents)
    await call.reply(())


async def show_logging(call: Call) -> None:
    """How the server logs."""
    await call.reply_json(log_settings())


async def set_logging(call: Call) -> None:
    """Change how the server logs, with all its processes."""
    await call.reply_json(await change_log_settings(call.server.administer, await read_object(call)))


async def show_trace(call: Call) -> None:
    """What is traced, of one model or all."""
    await call.reply_json(trace_settings(call.server, call.name))


async def set_trace(call: Call) -> None:
    """Change what is traced, of one model or all, by all frontends."""
    await call.reply_json(await change_trace_settings(call.server, call.name, await read_object(call)))


async def system_memory_status(call: Call) -> None:
    """The regions that clients have registered, or one of them."""
    await call.reply_json(call.server.shared_memory.status(call.name))


async def register_system_memory(call: Call) -> None:
    """Make a region known."""
    _require_region(call, "system")
    body = await read_object(call)
    key, offset, size = _member(body, "key", str), _member(body, "offset", int, 0), _member(body, "byte_size", int)
    call.server.shared_memory.register(call.name, key, offset, size)
    await call.reply(())


async def unregister_system_memory(call: Call) -> None:
    """Forget a region, or all of them."""
    call.server.shared_memory.unregister(call.name)
    await call.reply(())


async def cuda_memory_status(call: Call) -> None:
    """There is never a region of a GPU's memory."""
    require_no_region(call.name)
    await call.reply_json([])


async def register_cuda_memory(call: Call) -> None:
    """Refused: memory of GPUs is not shared."""
    _require_region(call, "cuda")
    raise InferenceError(CUDA_IS_ABSENT.format(call.name[:100]), Code.UNSUPPORTED)


async def unregister_cuda_memory(call: Call) -> None:
    """Forget a region of a GPU's memory, of which there is never one."""
    await call.reply(())


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        raise invalid("Unable to parse 'parameters': attempt to access JSON non-object as object")
    return parameters


def _require_region(call: Call, kind: str) -> None:
    if not call.name:
        raise invalid(f"'region name' is necessary to register {kind} shared memory region")


def _member(body: dict[str, object], name: str, kind: type, otherwise: object = None) -> Any:
    value = body.get(name, otherwise)
    if value is None:
        raise invalid(f"Shared memory register request has no '{name}' field")
    if type(value) is not kind:
        wanted = "string" if kind is str else "unsigned-integer"
        raise invalid(f"Unable to parse '{name}': attempt to access JSON non-{wanted} as {wanted}")
    return value
