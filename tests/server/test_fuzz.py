"""No field of any body is a server error: hostile values in every documented field, with a real engine and a template
that reads whatever there is."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.properties import examples
from tests.tiny import write_tiny_model

TEMPLATE = (
    "{%- if tools %}{{ tools | tojson }}{% endif %}"
    "{%- for message in messages %}"
    "{%- if message.tool_calls %}{% for call in message.tool_calls %}"
    "<|im_start|>{{ call.function.name }}({{ call.function.arguments | tojson }}){{ call.id }}{% endfor %}{% endif %}"
    "{%- for key in message %}{% if key not in ('role', 'content', 'tool_calls') %}"
    "{{ key }}={{ message[key] | tojson }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>' + message.role }}\n{{ (message.content or '') | trim }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>' }}{% endif %}"
    "{%- if date_string %}{{ date_string.strip() }}{% endif %}{{ self }}{{ reasoning_effort }}{{ loop }}"
)

MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/chat/completions/render": {"messages": MESSAGES},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/generate": {"prompt": "hi", "max_tokens": 2},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
"""A good body for each."""

DONE = r"data: \[DONE\]\n\n"
ENDS = {
    "/v1/messages": r'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": r"event: response\.(completed|incomplete)\ndata: {.*}\n\n",
}
"""How streams end."""

VOCAB_SIZE = 320


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "fuzzed")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    command = [sys.executable, "-m", "octavo", "serve", str(folder), "--port", "0", "--max-num-seqs", "8"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            url = next(found[1] for line in lines if (found := re.search(r"ready on (http://\S+)", line)))
            drained = threading.Thread(target=process.stderr.read, daemon=True)  # or it would block on a full pipe
            drained.start()
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
        finally:
            process.terminate()


def nested(depth: int, kind: str) -> Any:
    """Lists or objects, one in the other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


TEXT = st.one_of(
    st.text(st.characters(), max_size=8),  # lone surrogates among them
    st.sampled_from(
        ["", " ", "\x00", "\ud800", "\udfff\ud800", "<|im_end|>", "<|im_start|>", "{{ 1 }}", "a" * 3000, "٣"]
    ),
)
SIGNS, STEPS = st.sampled_from([1, -1]), st.sampled_from([-1, 0])
NUMBERS = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([VOCAB_SIZE - 1, VOCAB_SIZE, VOCAB_SIZE + 1, 255, 256, 257]),
    st.sampled_from(
        [sign * 2**bits + step for bits in (31, 32, 53, 63, 64, 200) for sign in (1, -1) for step in (-1, 0)]
    ),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e308, 1e-9, 0.01, 2.0, 100.0]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
NAMES = st.one_of(
    TEXT,
    st.sampled_from(["self", "messages", "tools", "documents", "loop", "range", "enable_thinking", "date_string"]),
    st.sampled_from(["role", "content", "tool_calls", "function", "name", "arguments", "id", "type", "text"]),
)
VALUES = st.one_of(
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
        max_leaves=12,
    ),
    st.builds(nested, st.sampled_from([10, 100, 300]), st.sampled_from(["list", "object"])),
)


def documented(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Roughly what a schema asks for, at its limits and a little beyond, so that most of a body is taken."""
    if "$ref" in schema:
        return documented(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return st.one_of([documented(option, definitions) for option in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object" if "properties" in schema:
            fields = {name: wild(part, definitions) for name, part in schema["properties"].items()}
            needed = {name: fields.pop(name) for name in schema.get("required", [])}
            more = st.dictionaries(NAMES, VALUES, max_size=2) if schema.get("additionalProperties") else st.just({})
            return st.builds(lambda body, extra: body | extra, st.fixed_dictionaries(needed, optional=fields), more)
        case "object":
            inner = schema.get("additionalProperties")
            keys = st.one_of(NAMES, st.integers(-1, VOCAB_SIZE).map(str))
            return st.dictionaries(
                keys, documented(inner, definitions) if isinstance(inner, dict) else VALUES, max_size=3
            )
        case "array":
            return st.lists(documented(schema.get("items", {}), definitions), max_size=4)
        case "string":
            return TEXT
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "integer" | "number":
            low, high = schema.get("minimum", -2), schema.get("maximum", VOCAB_SIZE)
            numbers = st.integers(int(low), max(int(low), int(min(high, low + VOCAB_SIZE))))
            return numbers if schema["type"] == "integer" else st.one_of(numbers, st.floats(low, high))
    return VALUES


def wild(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly what the schema asks for."""
    good = documented(schema, definitions)
    return st.one_of(good, good, VALUES)


@st.composite
def bodies(draw: st.DrawFn, route: str, description: dict[str, Any]) -> str:
    """A good body with some fields changed; now and then one of them twice."""
    definitions = description["components"]["schemas"]
    content = description["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = definitions[content["$ref"].rpartition("/")[2]]["properties"]
    changed = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    body = ROUTES[route] | {name: draw(wild(fields[name], definitions)) for name in changed}
    if draw(st.booleans()):
        body |= draw(st.dictionaries(NAMES, VALUES, max_size=1))
    text = json.dumps(body)
    if changed and draw(st.booleans()):
        text = f"{text[:-1]}, {json.dumps(changed[0])}: {json.dumps(draw(VALUES))}}}"
    return text


@pytest.mark.hypothesis
@pytest.mark.parametrize("route", ROUTES)
def test_no_field_is_a_server_error(server: httpx.Client, route: str) -> None:
    description = server.get("/openapi.json").json()

    @given(body=bodies(route, description))
    @examples(30, suppress_health_check=list(HealthCheck))
    def answers(body: str) -> None:
        response = server.post(route, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404, 413), (response.text, body)
        assert "internal_error" not in response.text, body
        if response.headers["content-type"].startswith("text/event-stream"):
            assert re.search(rf"(^|\n\n){ENDS.get(route, DONE)}\Z", response.text), body
        else:
            answer = response.json()
            assert response.status_code == 200 or answer.get("detail") or answer["error"]["message"], body

    answers()
    assert server.get("/health").json()["status"] == "ok"
    assert server.post(route, json=ROUTES[route]).status_code == 200


def test_every_documented_body_is_tried(server: httpx.Client) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    posted = {path for path, methods in paths.items() if "requestBody" in methods.get("post", {})}
    # Those of hosted models are tried in tests/server/inference.
    of_hosted_models = {path for path in posted if path.startswith("/v2/") or "predict" in path}
    assert posted - set(ROUTES) - of_hosted_models <= {"/admin/deployments"}
