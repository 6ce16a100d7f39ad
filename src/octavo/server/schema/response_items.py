"""Items of OpenAI's Responses API: what a conversation consists of there, and what of it the server makes messages.

Items are kept as dicts in the form in which the API returns them, so that what was sent, what was answered and what is
stored are the same thing.
"""

import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from octavo.server.schema.base import Body, WrongElement
from octavo.server.schema.messages import MAX_MESSAGES

MAX_PARTS = 4096

ItemId = Annotated[str, Field(min_length=1, max_length=256)]
Items = list[dict[str, Any]]


def new_id(prefix: str) -> str:
    """An id as OpenAI's look."""
    return f"{prefix}_{uuid.uuid4().hex}"


class InputPart(Body):
    """A piece of a message or of a function's output. Text is the only kind so far."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str = ""
    refusal: str = ""

    @model_validator(mode="before")
    @classmethod
    def _has_text(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("a part is an object with a type and a text")
        kind = data.get("type")
        if not isinstance(kind, str):
            raise WrongElement("a type is a string", "type")
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise WrongElement(f"parts of type {kind!r} are not supported, only input_text and output_text", "type")
        member = "refusal" if kind == "refusal" else "text"
        if not isinstance(data.get(member), str):
            raise WrongElement(f"a part of type {kind} has a {member}", member)
        return data


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("this is neither a string nor a list of parts")
    return value


Content = Annotated[
    list[InputPart],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart]),
]


def _texts(content: Content) -> list[str]:
    return [part.text or part.refusal for part in content]


class MessageItem(Body):
    """A message of the client's, or one that a model answered with."""

    type: Literal["message"] = "message"
    id: ItemId | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    status: Literal["in_progress", "completed", "incomplete"] = "completed"

    def item(self) -> dict[str, Any]:
        """As the API returns it."""
        answer = self.role == "assistant"
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if answer else {}
        content = [
            {"type": "output_text" if answer else "input_text", "text": text, **more} for text in _texts(self.content)
        ]
        head = {"id": self.id or new_id("msg"), "type": "message", "status": self.status}
        return {**head, "role": self.role, "content": content}


class FunctionCallItem(Body):
    """A call that a model made."""

    type: Literal["function_call"]
    id: ItemId | None = None
    call_id: str = Field(min_length=1, max_length=256)
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"] = "completed"

    def item(self) -> dict[str, Any]:
        """As the API returns it."""
        return {
            "id": self.id or new_id("fc"),
            "type": "function_call",
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


class FunctionCallOutputItem(Body):
    """What a function returned."""

    type: Literal["function_call_output"]
    id: ItemId | None = None
    call_id: str = Field(min_length=1, max_length=256)
    output: Content
    status: Literal["in_progress", "completed", "incomplete"] = "completed"

    def item(self) -> dict[str, Any]:
        """As the API returns it."""
        return {
            "id": self.id or new_id("fco"),
            "type": "function_call_output",
            "status": self.status,
            "call_id": self.call_id,
            "output": "".join(_texts(self.output)),
        }


class ReasoningText(Body):
    """A piece of what a model thought, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


Thoughts = Annotated[list[ReasoningText], Field(max_length=MAX_PARTS, fail_fast=True)]


class ReasoningItem(Body):
    """What a model thought."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: Thoughts = Field([])
    content: Thoughts = Field([])
    status: Literal["in_progress", "completed", "incomplete"] = "completed"

    def item(self) -> dict[str, Any]:
        """As the API returns it."""
        return {
            "id": self.id or new_id("rs"),
            "type": "reasoning",
            "status": self.status,
            "summary": [{"type": "summary_text", "text": part.text} for part in self.summary],
            "content": [{"type": "reasoning_text", "text": part.text} for part in self.content],
        }


class ItemReference(Body):
    """An item of a stored response."""

    type: Literal["item_reference"] = "item_reference"
    id: ItemId

    def item(self) -> dict[str, Any]:
        """To be replaced by the item itself."""
        return {"type": "item_reference", "id": self.id}


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | ItemReference

_ITEMS: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
    "item_reference": ItemReference,
}


def _item(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an item is an object")
    kind = value.get("type")
    if kind is None:
        kind = "message" if "role" in value or "id" not in value else "item_reference"
    if not isinstance(kind, str):
        raise WrongElement("a type is a string", "type")
    model = _ITEMS.get(kind)
    if model is None:
        raise WrongElement(f"items of type {kind!r} are not supported, only {', '.join(_ITEMS)}", "type")
    return model.model_validate(value).item()


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("this is neither a string nor a list of items")
    return value


ItemDict = Annotated[dict[str, Any], PlainValidator(_item, json_schema_input_type=Item)]
ItemList = Annotated[
    list[ItemDict],
    Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
]


def messages_of(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as a chat template reads them: what a model thought, said and called in a row is one message."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's message that further items go on with
    for item in items:
        kind = item["type"]
        if kind == "message" and item["role"] != "assistant":
            turn = None
            messages.append({"role": item["role"], "content": _joined(item["content"])})
            continue
        if kind == "function_call_output":
            turn = None
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
            continue
        if turn is None or any(name in turn for name in _BEFORE[kind]):
            turn = {"role": "assistant"}
            messages.append(turn)
        match kind:
            case "reasoning":
                turn["reasoning_content"] = _joined(item["content"] or item["summary"])
            case "message":
                turn["content"] = _joined(item["content"])
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"function": function, "id": item["call_id"], "type": "function"}
                turn.setdefault("tool_calls", []).append(call)
    return messages


_BEFORE = {
    "reasoning": ("reasoning_content", "content", "tool_calls"),
    "message": ("content", "tool_calls"),
    "function_call": (),
}
"""What an assistant's message cannot have already if an item of this type is to be a part of it."""


def _joined(parts: Items) -> str:
    return "".join([part["text"] for part in parts])
