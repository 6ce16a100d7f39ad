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
    """

    path: str
    methods: Mapping[str, Handler]


class Found(NamedTuple):
    """A route, and what a path names of it: a model (or a region of memory) and its version, empty if it does not."""

    route: Route
    name: str = ""
    version: str = ""


def _get(path: str, handler: Handler) -> Route:
    return Route(path, {"GET": handler})


def _post(path: str, handler: Handler) -> Route:
    return Route(path, {"POST": handler})


_MODEL = "/v2/models/{model_name}"

_PLAIN = {
    each.path: Found(each)
    for each in (
        _get("/v2", management.about_server),
        _get("/v2/health/live", management.live),
        _get("/v2/health/ready", management.ready),
        _get("/v2/models", management.list_models),
        _get("/v2/models/stats", management.all_statistics),
        _post("/v2/repository/index", management.index),
        Route("/v2/logging", {"GET": management.show_logging, "POST": management.set_logging}),
        Route("/v2/trace/setting", {"GET": management.show_trace, "POST": management.set_trace}),
    )
}

INFER = _post(f"{_MODEL}/infer", infer)

_OF_MODELS = {
    "": _get(_MODEL, management.about_model),
    "ready": _get(f"{_MODEL}/ready", management.model_ready),
    "config": _get(f"{_MODEL}/config", management.configuration),
    "stats": _get(f"{_MODEL}/stats", management.statistics),
    "infer": INFER,
    "infer_stream": _post(f"{_MODEL}/infer_stream", infer_stream),
    "generate": _post(f"{_MODEL}/generate", generate),
    "generate_stream": _post(f"{_MODEL}/generate_stream", generate_stream),
    "trace/setting": Route(f"{_MODEL}/trace/setting", {"GET": management.show_trace, "POST": management.set_trace}),
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
        ("status", _get(f"/v2/{kind}sharedmemory/region/{{region_name}}/status", status)),
        ("register", _post(f"/v2/{kind}sharedmemory/region/{{region_name}}/register", register)),
        ("unregister", _post(f"/v2/{kind}sharedmemory/region/{{region_name}}/unregister", unregister)),
    )
}

_LOADING = _post("/v2/repository/models/{model_name}/load", management.load)
_UNLOADING = _post("/v2/repository/models/{model_name}/unload", management.unload)
_V1_PREDICT = _post("/v1/models/{model_name}:predict", predict.predict_v1)
PREDICT = _post("/v1/models/{model_name}/predict", predict.predict)

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
