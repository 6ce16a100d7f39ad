"""Formats of tool calls by the names that `--tool-call-parser` takes."""

from __future__ import annotations

from octavo.errors import OctavoError
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.harmony import Harmony
from octavo.text.formats.hermes import Granite, Hermes
from octavo.text.formats.json_format import BareJson
from octavo.text.formats.llama import Llama3Json
from octavo.text.formats.mistral import Mistral
from octavo.text.formats.pythonic import Pythonic
from octavo.text.formats.sections import DeepSeekV3, DeepSeekV31, KimiK2
from octavo.text.formats.xml import Glm45, Qwen3Coder

__all__ = ["JSON", "TOOL_FORMATS", "ToolFormat", "find_tool_format", "tool_format", "tool_format_names"]

JSON = BareJson()
"""What is tried with a model of which nothing is known."""

# In the order in which templates are asked: what is more special comes first.
TOOL_FORMATS: tuple[ToolFormat, ...] = (
    Harmony(),
    KimiK2(),
    DeepSeekV3(),
    DeepSeekV31(),
    Glm45(),
    Qwen3Coder(),
    Mistral(),
    Granite(),
    Hermes(),
    Pythonic(),
    Llama3Json(),
    JSON,
)


def tool_format(name: str) -> ToolFormat:
    """The format with this name. Raises OctavoError if there is none."""
    for form in TOOL_FORMATS:
        if name in form.names:
            return form
    raise OctavoError(f"There is no tool-call parser {name!r}: take one of {', '.join(tool_format_names())}.")


def tool_format_names() -> tuple[str, ...]:
    """All names that `tool_format` takes."""
    return tuple(sorted(name for form in TOOL_FORMATS for name in form.names))


def find_tool_format(template: str | None, family: str) -> ToolFormat:
    """The format that a chat template (its source) has models write; else that of the family by this name."""
    for form in TOOL_FORMATS:
        if template and form.recognises(template):
            return form
    family = family.lower()
    for form in TOOL_FORMATS:
        if any(name in family for name in form.families):
            return form
    return JSON
