"""The protocol's routes as the server's documentation has them, which the framework does not know of."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from octavo.deployments.hosted import HostedDeployment
from octavo.server.errors import ERROR_SCHEMA, error_responses
from octavo.server.inference.routes import PREDICT, ROUTES, Route

TAG = "Open Inference Protocol"

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "description": "BOOL, UINT8 … FP32, FP64, BYTES; FP16 and BF16 in binary."},
        "parameters": {"type": "object", "description": "binary_data_size, or where in shared memory it is."},
        "data": {"type": "array", "items": {}, "description": "Flat or nested, in row-major order."},
    },
}

_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "description": "binary_data_output, priority, timeout (microseconds) …"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {"type": "object", "description": "binary_data, classification, shared memory."},
                },
            },
        },
    },
}

_MEMBERS = {"type": "object", "description": "Tensors by name, as values or flat lists; anything else is a parameter."}

_BODIES: dict[str, dict[str, Any]] = {
    "infer": _INFER,
    "infer_stream": _INFER,
    "generate": _MEMBERS,
    "generate_stream": _MEMBERS,
    "{model_name}:predict": {
        "type": "object",
        "properties": {"instances": {"type": "array", "items": {}}, "inputs": {}},
    },
    "predict": {"type": "object", "description": "Nested lists by the names of the inputs, without a batch dimension."},
}
"""By the last part of a path."""

_ERROR = {
    "description": "What is wrong.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}


def document(schema: dict[str, Any]) -> None:
    """Add the routes to an OpenAPI description, where it does not have them."""
    for route in ROUTES:
        for path in _paths(route):
            operations = schema["paths"].setdefault(path, {})
            for method in route.methods:
                operations.setdefault(method.lower(), _operation(route, method, path))


def with_models(schema: dict[str, Any], deployments: Iterable[HostedDeployment]) -> dict[str, Any]:
    """The same description with the bodies of those models that say what theirs are, as they are offered now."""
    paths, schemas = dict(schema["paths"]), dict(schema.get("components", {}).get("schemas", {}))
    for each in deployments:
        info = each.client.info
        if info is None or info.body is None:
            continue
        prefix = re.sub(r"[^\w.-]", "_", each.name)
        body, result, definitions = _renamed([info.body, info.result, info.definitions], prefix)
        schemas |= {f"{prefix}.{name}": value for name, value in definitions.items()}
        content = {"application/json": {"schema": body}}
        if info.files:
            content["multipart/form-data"] = {"schema": _form(body, info.files)}
        answer = "text/event-stream" if info.streams else "application/json"
        paths[f"/v1/models/{quote(each.name, safe='')}/predict"] = {
            "post": {
                "tags": ["Hosted models"],
                "summary": f"Ask {each.name}",
                "description": info.description,
                "operationId": f"predict_{prefix}",
                "requestBody": {"required": True, "content": content},
                "responses": {
                    "200": {"description": "What the model says.", "content": {answer: {"schema": result or {}}}},
                    **{str(status): each for status, each in error_responses(ERROR_SCHEMA).items()},
                },
            }
        }
    components = {**schema.get("components", {}), "schemas": schemas}
    return {**schema, "paths": paths, "components": components}


def _renamed(schemas: list[Any], prefix: str) -> list[Any]:
    """Schemas whose references are to names that no other model has."""
    text = orjson.dumps(schemas).replace(b'"#/$defs/', f'"#/components/schemas/{prefix}.'.encode())
    found: list[Any] = orjson.loads(text)
    return found


def _form(body: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """A body as a form, in which files are files."""
    fields = {name: {"type": "string", "format": "binary"} for name in files}
    return {**body, "properties": {**body["properties"], **fields}}


def _paths(route: Route) -> Iterator[str]:
    """The path, that of a version, and that of all regions."""
    yield route.path
    if "sharedmemory" in route.path and not route.path.endswith("/register"):
        yield route.path.replace("/region/{region_name}", "")
    if match := re.fullmatch(r"(/v2/models/{model_name})((?!/trace).*)", route.path):
        yield f"{match[1]}/versions/{{model_version}}{match[2]}"


def _operation(route: Route, method: str, path: str) -> dict[str, Any]:
    handler = route.methods[method]
    name = getattr(handler, "__name__", "").replace("_", " ")
    operation: dict[str, Any] = {
        "tags": ["Hosted models" if route is PREDICT else TAG],
        "summary": name.capitalize(),
        "description": (handler.__doc__ or "").strip(),
        "operationId": re.sub(r"\W+", "_", f"{name}_{path}_{method.lower()}").strip("_"),
        "responses": {"200": {"description": "Done."}, "default": _ERROR},
    }
    if names := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in names
        ]
    body = _BODIES.get(route.path.rpartition("/")[2])
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
