"""Conversations as Anthropic's API has them: turns that are made of blocks."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainValidator

from octavo.server.schema.base import Body, WrongElement
from octavo.server.schema.messages import MAX_MESSAGES


class TextBlock(Body):
    """A piece of text."""

    has_more = True

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """What the model thought earlier. Its signature is not checked: whoever may write the model's answers may write
    what it thought, too."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Body):
    """What a model thought and does not show. Nothing is made of it."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(Body):
    """A call that the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _reader(of: str, kinds: Mapping[str, type[Body]]) -> Callable[[Any], Body]:
    """What reads a block. By hand: of a union pydantic would report what every kind has against it."""

    def read(value: Any) -> Body:
        if not isinstance(value, dict):
            raise ValueError("a block is an object with a type")
        kind = value.get("type")
        model = kinds.get(kind) if isinstance(kind, str) else None
        if model is None:
            raise WrongElement(f"{of} has blocks of type {', '.join(kinds)}, and none of type {kind!r:.80}", "type")
        return model.model_validate(value)

    return read


_Text = Annotated[
    TextBlock, PlainValidator(_reader("this content", {"text": TextBlock}), json_schema_input_type=TextBlock)
]
TextContent = str | Annotated[list[_Text], Field(fail_fast=True)]


class ToolResultBlock(Body):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(description="Of the block that the model called with.")
    content: TextContent = ""
    is_error: bool = False


_UserBlock = Annotated[
    TextBlock | ToolResultBlock,
    PlainValidator(
        _reader("a user's turn", {"text": TextBlock, "tool_result": ToolResultBlock}),
        json_schema_input_type=TextBlock | ToolResultBlock,
    ),
]
_AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock,
    PlainValidator(
        _reader(
            "an assistant's turn",
            {
                "text": TextBlock,
                "thinking": ThinkingBlock,
                "redacted_thinking": RedactedThinkingBlock,
                "tool_use": ToolUseBlock,
            },
        ),
        json_schema_input_type=TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock,
    ),
]


def _not_empty(content: Any) -> Any:
    if content == []:  # of which a union would say that it is no text
        raise ValueError("a user's turn has at least one block")
    return content


class UserTurn(Body):
    """What the user says, or what came of calls."""

    role: Literal["user"]
    content: Annotated[
        str | Annotated[list[_UserBlock], Field(min_length=1, fail_fast=True)], BeforeValidator(_not_empty)
    ]


class AssistantTurn(Body):
    """What the model said. The last one of a conversation is continued."""

    role: Literal["assistant"]
    content: str | Annotated[list[_AssistantBlock], Field(fail_fast=True)]


class SystemTurn(Body):
    """What the operator says in between."""

    role: Literal["system"]
    content: TextContent


class Turn(NamedTuple):
    """A turn that is valid. Its content is a text, or blocks that its role may have."""

    role: str
    content: str | list[Any]


_TURNS: Mapping[str, type[UserTurn] | type[AssistantTurn] | type[SystemTurn]] = {
    "user": UserTurn,
    "assistant": AssistantTurn,
    "system": SystemTurn,
}


def _turn(value: Any) -> Turn:
    """A turn; a usual one needs no model, of which tens of thousands would keep the garbage collector busy."""
    if not isinstance(value, dict):
        raise ValueError("a message is an object with a role and content")
    role = value.get("role")
    model = _TURNS.get(role) if isinstance(role, str) else None
    if model is None:
        raise WrongElement(f"a role is one of {', '.join(_TURNS)}, not {role!r:.80}", "role")
    if isinstance(value.get("content"), str):
        return Turn(model.__name__.removesuffix("Turn").lower(), value["content"])
    turn = model.model_validate(value)
    return Turn(turn.role, turn.content)


Turns = Annotated[
    list[Annotated[Turn, PlainValidator(_turn, json_schema_input_type=UserTurn | AssistantTurn | SystemTurn)],],
    Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
]
