"""From Anthropic's turns to the messages that chat templates are written for, which are OpenAI's."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from octavo.server.errors import invalid
from octavo.server.schema.blocks import (
    TextBlock,
    TextContent,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

Message = dict[str, Any]


def template_messages(system: TextContent, turns: Sequence[Turn]) -> list[Message]:
    """The conversation as a chat template reads it. Turns of one role that follow each other are one message, but for
    the results of calls, which are one each.

    Raises:
        ApiError: 400: a result of a call that nobody made, or calls at the end that have no results.
    """
    heads = [Turn("system", system)] if system else []
    messages: list[Message] = []
    called: dict[str, str] = {}
    numbered = enumerate([*heads, *turns], -len(heads))
    for role, group in groupby(numbered, lambda item: item[1].role):
        same = list(group)
        turns_of_role = [turn for _, turn in same]
        if role == "assistant":
            messages.append(_said(turns_of_role, called))
            continue
        results = [each for number, turn in same for each in _results(turn, called, f"messages[{number}]")]
        messages += results
        texts = _texts(turns_of_role)
        if texts or not results:
            messages.append({"role": role, "content": _content(texts)})
    if "tool_calls" in messages[-1]:
        path = f"messages[{len(turns) - 1}]"
        raise invalid(f"'{path}' ends with tool_use blocks: a tool_result for each of them must follow.", path)
    return messages


def _said(turns: Sequence[Turn], called: dict[str, str]) -> Message:
    """What the assistant said. `called` learns the names of calls by their ids."""
    thoughts: list[str] = []
    calls: list[Message] = []
    for turn in turns:
        for block in () if isinstance(turn.content, str) else turn.content:
            match block:
                case ThinkingBlock():
                    thoughts.append(block.thinking)
                case ToolUseBlock():
                    called[block.id] = block.name
                    function = {"name": block.name, "arguments": block.input}
                    calls.append({"id": block.id, "type": "function", "function": function})
    message: Message = {"role": "assistant", "content": _content(_texts(turns))}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _results(turn: Turn, called: dict[str, str], path: str) -> Iterator[Message]:
    """What came of calls."""
    if isinstance(turn.content, str):
        return
    for number, block in enumerate(turn.content):
        if isinstance(block, ToolResultBlock):
            if block.tool_use_id not in called:
                field = f"{path}.content[{number}].tool_use_id"
                raise invalid(f"'{field}' is {block.tool_use_id!r:.80}, the id of no tool_use block before it.", field)
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "name": called[block.tool_use_id],
                "content": _result(block),
            }


def _result(block: ToolResultBlock) -> str:
    """Templates have no place for whether a call failed: the text must say so."""
    content = block.content
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    return f"Error: {text}" if block.is_error and not text.lower().startswith("error") else text


def _texts(turns: Sequence[Turn]) -> list[str]:
    texts: list[str] = []
    for turn in turns:
        if isinstance(turn.content, str):
            texts.append(turn.content)
        else:
            texts += [block.text for block in turn.content if isinstance(block, TextBlock)]
    return texts


def _content(texts: Sequence[str]) -> str | list[Message]:
    if len(texts) > 1:
        return [{"type": "text", "text": text} for text in texts]
    return texts[0] if texts else ""
