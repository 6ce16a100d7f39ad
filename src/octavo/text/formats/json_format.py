"""Calls as plain JSON: for models that know no format, and what these are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.grammar.lark import Lark
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.json_calls import json_call, read_bare_calls
from octavo.text.formats.reader import Reader
from octavo.text.scanner import Reading
from octavo.text.tools import Tool


class BareJson(ToolFormat):
    """Objects with a name and arguments that nothing marks as calls, anywhere in the answer."""

    names = ("json",)

    def recognises(self, template: str) -> bool:
        return False

    def read(self, reader: Reader) -> Reading[None]:
        return read_bare_calls(reader)

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        return json_call(lark, tool)

    def frame(self, lark: Lark) -> Frame:
        return Frame(separator="\n")

    def grammar(self, lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool, without: str) -> str | None:
        """Without a marker nothing says where a call begins: only calls that must be made have a grammar."""
        return super().grammar(lark, tools, required=True, parallel=parallel, without="") if required else None

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls that were made, as OpenAI's API carries them, for a model whose template knows none.

        Raises RecursionError: arguments that are no string are nested too deep.
        """
        return "\n".join(_line(each.get("function") or {}) for each in calls)

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What a model whose template knows no tools is told about them, in the system message."""
        functions = "\n".join(json.dumps(tool.for_template()["function"], ensure_ascii=False) for tool in tools)
        return (
            "You may call these functions, given as JSON with JSON schemas of their parameters:\n"
            f"{functions}\n"
            "To call one, answer with nothing but a JSON object on a line of its own:\n"
            '{"name": "the function\'s name", "arguments": {"parameter": "value"}}'
        )


def _line(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # otherwise they stay as the model wrote them
            parsed = json.loads(arguments)
            return json.dumps({"name": function.get("name"), "arguments": parsed}, ensure_ascii=False)
    return json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)
