"""What a chat message says beside text, in OpenAI's words: calls of functions, and reasoning."""

from typing import Any

from octavo.deployments.choice import Delta
from octavo.text.formats import ToolFormat
from octavo.text.parts import Reasoning, Text, ToolCall


class Calls:
    """The calls of an answer's choices, each with an id from its first piece on.

    Args:
        form: how the model writes calls; some templates want ids of a certain form back.
        old: whether the client knows functions only, of which one can be called.
    """

    def __init__(self, form: ToolFormat, *, old: bool = False) -> None:
        self._form = form
        self._old = old
        self._ids: dict[int, dict[int, str]] = {}

    @property
    def reason(self) -> str:
        """Why an answer ends that calls something."""
        return "function_call" if self._old else "tool_calls"

    def begun(self, choice: int) -> bool:
        """Whether a choice has called anything yet."""
        return choice in self._ids

    def add(self, said: dict[str, Any], choice: int, part: ToolCall) -> None:
        """Say a piece of a call."""
        ids = self._ids.setdefault(choice, {})
        new = part.index not in ids
        if new:
            ids[part.index] = self._form.call_id(part.index, part.name)
        function = {"name": part.name, "arguments": part.arguments} if new else {"arguments": part.arguments}
        if self._old:
            if part.index == 0:
                said["function_call"] = function
            return
        head = {"index": part.index} | ({"id": ids[part.index], "type": "function"} if new else {})
        said.setdefault("tool_calls", []).append(head | {"function": function})


def message_of(delta: Delta, calls: Calls, *, reasons: bool) -> dict[str, Any]:
    """What a delta adds to a message; of a whole choice, the message but for its role.

    Args:
        reasons: whether the client wants to know what the model thought. It is said under both names that clients
            read: DeepSeek's and vLLM's.
    """
    said: dict[str, Any] = {}
    for part in delta.parts:
        match part:
            case Text(text):
                said["content"] = said.get("content", "") + text
            case Reasoning(text) if reasons:
                said["reasoning_content"] = said["reasoning"] = said.get("reasoning", "") + text
            case ToolCall():
                calls.add(said, delta.index, part)
    return said
