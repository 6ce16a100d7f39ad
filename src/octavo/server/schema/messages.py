"""Conversations."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, field_validator, model_validator

from octavo.server.schema.base import Body, empty_is_absent

MAX_MESSAGES = 2**15
MAX_MESSAGE_FIELDS = 64


class TextPart(Body):
    """A piece of a message. Text is the only kind so far."""

    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "text":
            raise ValueError(f'parts of type "{value[:64]}" are not supported: models here read text alone')
        return value


class FunctionCall(Body):
    """A call the model made earlier in the conversation."""

    name: str
    arguments: str = ""


class ToolCall(Body):
    """A call the model made earlier in the conversation."""

    model_config = ConfigDict(extra="allow")

    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """The call as a chat template reads it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"function": function, **_present(self.model_extra)}


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(Body):
    """One turn of a conversation. Further fields reach the model's chat template. "function" is the old name of "tool",
    for results of calls that had no id."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[Annotated[list[ToolCall], Field(fail_fast=True)] | None, BeforeValidator(empty_is_absent)] = (
        None
    )

    tool_call_id: str | None = Field(None, description="Of the call that a message of role tool answers.")

    @model_validator(mode="after")
    def _results_say_of_which_call(self) -> "Message":
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role tool needs 'tool_call_id', the id of the call that it answers")
        return self

    @model_validator(mode="after")
    def _only_assistants_are_silent(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as a chat template reads it. By hand: pydantic does not dump what is nested deeply, and anything
        may be in the further fields."""
        message: dict[str, Any] = {"role": "tool" if self.role == "function" else self.role}
        if isinstance(self.content, list):
            message["content"] = [{"type": part.type, "text": part.text} for part in self.content]
        elif self.content is not None:
            message["content"] = self.content
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls is not None:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message | _present(self.model_extra)


def _present(extra: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (extra or {}).items() if value is not None and value != []}


def _message(value: Any) -> dict[str, Any]:
    """A message as a chat template reads it. A usual one is that already: of tens of thousands the garbage collector
    would have more to do with the models than the server with the messages."""
    if isinstance(value, dict):
        if len(value) == 2 and value.get("role") in _ROLES and _is_text(value.get("content")):
            return value
        if len(value) > MAX_MESSAGE_FIELDS:
            raise ValueError(f"a message has at most {MAX_MESSAGE_FIELDS} fields, not {len(value)}")
    return Message.model_validate(value).for_template()


_ROLES = tuple(role for role in get_args(Role) if role not in ("tool", "function"))
"""Of messages that need nothing but content. No set: what is looked for in it may be anything."""


def _is_text(content: Any) -> bool:
    return isinstance(content, str) or (isinstance(content, list) and all(map(_is_text_part, content)))


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and len(part) == 2 and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


MessageDict = Annotated[dict[str, Any], PlainValidator(_message, json_schema_input_type=Message)]
Messages = Annotated[list[MessageDict], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
