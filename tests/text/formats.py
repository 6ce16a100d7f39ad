"""How each format writes calls, for tests: written out once more, as the families' chat templates write them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.text.tools import Tool

WEATHER = Tool(
    name="get_weather",
    description="The weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "units": {"enum": ["metric", "imperial"]},
            "limits": {"type": "object"},
            "hours": {"type": "array", "items": {"type": "number"}},
            "place": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
    },
)
NOW = Tool(name="now", description="The time")
TOOLS = (WEATHER, NOW)

Call = tuple[str, Mapping[str, Any]]
FORMATS = (
    "hermes",
    "granite",
    "mistral",
    "mistral_v11",
    "llama3_json",
    "json",
    "pythonic",
    "qwen3_coder",
    "glm45",
    "deepseek_v3",
    "deepseek_v31",
    "kimi_k2",
    "openai",
)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def written(form: str, calls: Sequence[Call]) -> str:
    """The calls as a model with this format writes them."""
    return WRITERS[form](calls)


def as_json(call: Call, key: str = "arguments") -> str:
    return dumps({"name": call[0], key: call[1]})


def qwen3_coder(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        arguments = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in call[1].items())
        return f"<tool_call>\n<function={call[0]}>\n{arguments}</function>\n</tool_call>"

    return "\n".join(map(one, calls))


def glm45(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        arguments = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n" for key, value in call[1].items()
        )
        return f"<tool_call>{call[0]}\n{arguments}</tool_call>"

    return "\n".join(map(one, calls))


def deepseek(calls: Sequence[Call], between: str, before: str, middle: str, after: str) -> str:
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    head = f"{begin}function{sep}" if before else begin
    written = between.join(f"{head}{name}{middle or sep}{dumps(given)}{after}{end}" for name, given in calls)
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def kimi_k2(calls: Sequence[Call]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{dumps(given)}<|tool_call_end|>"
        for index, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def harmony(calls: Sequence[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(given)}<|call|>"
        for name, given in calls
    )


def pythonic(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"

    return f"[{', '.join(map(one, calls))}]"


WRITERS = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{as_json(call)}\n</tool_call>" for call in calls),
    "granite": lambda calls: f"<|tool_call|>[{', '.join(map(as_json, calls))}]",
    "mistral": lambda calls: f"[TOOL_CALLS] [{', '.join(map(as_json, calls))}]",
    "mistral_v11": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{dumps(given)}" for name, given in calls),
    "llama3_json": lambda calls: "; ".join(as_json(call, "parameters") for call in calls),
    "json": lambda calls: "\n".join(map(as_json, calls)),
    "pythonic": pythonic,
    "qwen3_coder": qwen3_coder,
    "glm45": glm45,
    "deepseek_v3": lambda calls: deepseek(calls, "\n", "function", "\n```json\n", "\n```"),
    "deepseek_v31": lambda calls: deepseek(calls, "", "", "", ""),
    "kimi_k2": kimi_k2,
    "openai": harmony,
}


def parser_name(form: str) -> str:
    """What `--tool-call-parser` calls it."""
    return form.removesuffix("_v11")
