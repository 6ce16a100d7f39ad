"""Writes docs/api.md: every endpoint, and every field of its requests, as the server's own OpenAPI document has them.

python -m tests.api_document      prints it; `make docs` writes it, and a test asks whether it is up to date.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from octavo.deployments import Deployments
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings

HEAD = """# The API

Generated from the code by `make docs`: every endpoint, and every field of a request. Fields that are not in a table are
ignored with a warning in the answer's headers, unless they look like a constraint: then the request is refused.
"""
REFUSED = "Not supported: refused."
SIMPLE = {"integer": "integer", "number": "number", "boolean": "boolean", "null": "null"}


def document() -> str:
    """The whole document."""
    api = create_app(ServerSettings(), Deployments()).openapi()
    return "\n".join([HEAD, *_endpoints(api)]) + "\n"


def _endpoints(api: dict[str, Any]) -> Iterator[str]:
    operations = [(path, method, each) for path, item in api["paths"].items() for method, each in item.items()]
    yield "| endpoint | |\n|---|---|"
    for path, method, operation in operations:
        yield f"| `{method.upper()} {path}` | {_line(operation.get('description') or operation.get('summary', ''))} |"
    schemas = api["components"]["schemas"]
    told: set[str] = set()
    for path, method, operation in operations:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name and name not in told:
            told.add(name)
            yield f"\n## `{method.upper()} {path}`\n"
            yield from _fields(schemas, name)


def _fields(schemas: dict[str, Any], name: str) -> Iterator[str]:
    schema = schemas[name]
    refused = []
    yield "| field | is | |\n|---|---|---|"
    for field, each in schema["properties"].items():
        if each.get("description") == REFUSED:
            refused.append(f"`{field}`")
            continue
        needed = " (required)" if field in schema.get("required", ()) else _default(each)
        yield f"| `{field}` | {_type(schemas, each)}{needed} | {_line(each.get('description', ''))} |"
    if refused:
        yield f"\nRefused, since to ignore them would change what you get: {', '.join(refused)}."


def _type(schemas: dict[str, Any], each: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "$ref" in each:
        name = each["$ref"].rpartition("/")[2]
        members = schemas[name].get("properties")
        return "object" if members is None else "object: " + ", ".join(f"`{member}`" for member in members)
    if "allOf" in each:
        return _type(schemas, each["allOf"][0])
    if "anyOf" in each or "oneOf" in each:
        kinds = [_type(schemas, kind) for kind in each.get("anyOf") or each["oneOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in each:
        return f"`{each['const']!r}`".replace("'", '"')
    if "enum" in each:
        return " or ".join(f'`"{value}"`' for value in each["enum"])
    match each.get("type"):
        case "array":
            items = _type(schemas, each.get("items", {}))
            return f"list of {items}" + (f", at most {each['maxItems']}" if "maxItems" in each else "")
        case "object":
            return "object"
        case "string":
            return "string" + (f" of at most {each['maxLength']}" if "maxLength" in each else "")
        case str(kind):
            return SIMPLE[kind] + _bounds(each)
    return "anything"


def _bounds(each: dict[str, Any]) -> str:
    least, above = each.get("minimum"), each.get("exclusiveMinimum")
    most, below = each.get("maximum"), each.get("exclusiveMaximum")
    words = [
        f"from {least:g}" if least is not None and abs(least) < 2**31 else "",
        f"above {above:g}" if above is not None else "",
        f"to {most:g}" if most is not None and abs(most) < 2**31 else "",
        f"below {below:g}" if below is not None and abs(below) < 2**31 else "",
    ]
    said = " ".join(word for word in words if word)
    return f" {said}" if said else ""


def _default(each: dict[str, Any]) -> str:
    default = each.get("default")
    return "" if default in (None, [], {}, "") else f"; {json.dumps(default)} if absent"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
