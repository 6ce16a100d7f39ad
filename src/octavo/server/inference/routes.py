"""The protocol's paths, and those of others that tensors are sent to."""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from octavo.server.inference import management, predict
from octavo.server.inference.generate import generate, generate_stream
from octavo.server.inference.http import Call
from octavo.server.inference.infer import infer
from octavo.server.inference.infer_stream import infer_stream

Handler = Callable[[Call], Awaitable[None]]

CACHED_PATHS = 1024
CACHED_PATH_LENGTH = 256


class Route(NamedTuple):
    """What is done for the paths of one form.

    Attributes:
        path: the form, as metrics and the documentation have it. methods: what each does.
        api: the part of the protocol that it belongs to, see `octavo.server.restrictions`.
    """

    path: str
    methods: Mapping[str, Handler]
    api: str


class Found(NamedTuple):
    """A route, and what a path names of it: a model (or a region of memory) and its version, empty if it does not."""

    route: Route
    name: str = ""
    version: str = ""


def _get(api: str, path: str, handler: Handler) -> Route:
    return Route(path, {"GET": handler}, api)


def _get_and_set(api: str, path: str, get: Handler, change: Handler) -> Route:
    return Route(path, {"GET": get, "POST": change}, api)


def _post(api: str, path: str, handler: Handler) -> Route:
    return Route(path, {"POST": handler}, api)


_MODEL = "/v2/models/{model_name}"

_PLAIN = {
    each.path: Found(each)
    for each in (
        _get("metadata", "/v2", management.about_server),
        _get("health", "/v2/health/live", management.live),
        _get("health", "/v2/health/ready", management.ready),
        _get("metadata", "/v2/models", management.list_models),
        _get("statistics", "/v2/models/stats", management.all_statistics),
        _post("model-repository", "/v2/repository/index", management.index),
        _get_and_set("logging", "/v2/logging", management.show_logging, management.set_logging),
        _get_and_set("trace", "/v2/trace/setting", management.show_trace, management.set_trace),
    )
}

INFER = _post("inference", f"{_MODEL}/infer", infer)

_OF_MODELS = {
    "": _get("metadata", _MODEL, management.about_model),
    "ready": _get("health", f"{_MODEL}/ready", management.model_ready),
    "config": _get("model-config", f"{_MODEL}/config", management.configuration),
    "stats": _get("statistics", f"{_MODEL}/stats", management.statistics),
    "infer": INFER,
    "infer_stream": _post("inference", f"{_MODEL}/infer_stream", infer_stream),
    "generate": _post("inference", f"{_MODEL}/generate", generate),
    "generate_stream": _post("inference", f"{_MODEL}/generate_stream", generate_stream),
    "trace/setting": _get_and_set("trace", f"{_MODEL}/trace/setting", management.show_trace, management.set_trace),
}

_OF_MEMORY = {
    (kind, action): route
    for kind, status, register, unregister in (
        (
            "system",
            management.system_memory_status,
            management.register_system_memory,
            management.unregister_system_memory,
        ),
        ("cuda", management.cuda_memory_status, management.register_cuda_memory, management.unregister_cuda_memory),
    )
    for action, route in (
        ("status", _get("shared-memory", f"/v2/{kind}sharedmemory/region/{{region_name}}/status", status)),
        ("register", _post("shared-memory", f"/v2/{kind}sharedmemory/region/{{region_name}}/register", register)),
        ("unregister", _post("shared-memory", f"/v2/{kind}sharedmemory/region/{{region_name}}/unregister", unregister)),
    )
}

_LOADING = _post("model-repository", "/v2/repository/models/{model_name}/load", management.load)
_UNLOADING = _post("model-repository", "/v2/repository/models/{model_name}/unload", management.unload)
_V1_PREDICT = _post("inference", "/v1/models/{model_name}:predict", predict.predict_v1)
PREDICT = _post("inference", "/v1/models/{model_name}/predict", predict.predict)

ROUTES = (
    *(each.route for each in _PLAIN.values()),
    *_OF_MODELS.values(),
    *_OF_MEMORY.values(),
    _LOADING,
    _UNLOADING,
    _V1_PREDICT,
    PREDICT,
)

# Names may have slashes, as those of repositories do.
_MODELS_PATH = re.compile(rf"/v2/models/(.+?)(?:/versions/([0-9]+))?(?:/({'|'.join(filter(None, _OF_MODELS))}))?")
_MEMORY_PATH = re.compile(r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)")
_CONTROL_PATH = re.compile(r"/v2/repository(?:/[^/]+)?/models/(.+)/(load|unload)")


def find_route(path: str) -> Found | None:
    """What a path is for; None if it is none of the protocol's."""
    return _cached(path) if len(path) <= CACHED_PATH_LENGTH else _find(path)


def _find(path: str) -> Found | None:
    if found := _PLAIN.get(path):
        return found
    if match := _MODELS_PATH.fullmatch(path):
        name, version, action = match.groups(default="")
        return Found(_OF_MODELS[action], name, version)
    if match := _MEMORY_PATH.fullmatch(path):
        kind, name, action = match.groups(default="")
        return Found(_OF_MEMORY[kind, action], name)
    if match := _CONTROL_PATH.fullmatch(path):
        return Found(_LOADING if match[2] == "load" else _UNLOADING, match[1])
    if path.startswith("/v1/models/") and (name := path.removeprefix("/v1/models/")):
        if name.endswith(":predict"):
            return Found(_V1_PREDICT, name.removesuffix(":predict"))
        if name.endswith("/predict"):
            return Found(PREDICT, name.removesuffix("/predict"))
    return None


_cached = lru_cache(CACHED_PATHS)(_find)
