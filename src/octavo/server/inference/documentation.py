"""The protocol's routes as the server's documentation has them, which the framework does not know of."""

import re
from collections.abc import Iterator
from typing import Any

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
