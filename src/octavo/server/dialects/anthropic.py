"""Answers as Anthropic's API writes them: messages made of blocks, their events, and errors."""

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import orjson
import pydantic_core

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation, Usage
from octavo.errors import InvalidRequest
from octavo.server.dialects.dialect import Writer
from octavo.server.errors import ApiError, error_message
from octavo.text.parts import Finish, Part, Reasoning, Text, ToolCall, join_parts

SIGNATURE = "octavo"
"""Anthropic's proves that the model thought what a block says. Here nothing proves it, and nothing is made of it."""

OVERLOADED = 529

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}

ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": ["string", "null"]},
    },
}


def error_status(error: ApiError) -> int:
    """Anthropic has a status of its own for what would be served a little later."""
    passes = error.status_code == 503 and "Retry-After" in (error.headers or {})
    return OVERLOADED if passes else error.status_code


def error_body(error: ApiError, request_id: str) -> bytes:
    """Anthropic's object."""
    status = error_status(error)
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return orjson.dumps(
        {"type": "error", "error": {"type": kind, "message": _message(error)}, "request_id": request_id or None}
    )


def _message(error: ApiError) -> str:
    """What is wrong; in Anthropic's wording where its agents recognise by it what they must shorten, and to what."""
    if error.code != "context_length_exceeded":
        return error_message(error)
    match error.__cause__:
        case InvalidRequest(context_length=int(limit), lengths=(prompt, wanted)):
            return (
                f"input length and `max_tokens` exceed context limit: {prompt} + {wanted} > {limit}, "
                "decrease input length or `max_tokens` and try again"
            )
    return f"prompt is too long: {error_message(error)}"


def usage_object(usage: Usage) -> dict[str, object]:
    """Anthropic's object, in which tokens that were read from the cache are not among those of the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class MessageWriter(Writer):
    """Writes messages.

    Args:
        thinks: whether the message has blocks of what the model thought. shown: whether they say what that was.
    """

    ping: ClassVar = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, generation: Generation, *, thinks: bool, shown: bool) -> None:
        self._generation = generation
        self._thinks = thinks
        self._shown = shown
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": generation.deployment.name,
        }
        self._begun = False
        self._blocks = 0
        self._open: tuple[type[Part], int] | None = None
        """The kind of the block that is being written, and which call it is, if it is one."""
        self._calls = False

    def events(self, delta: Delta) -> bytes:
        """A block begins with its first piece and ends when another one begins, or the message does."""
        events = b"" if self._begun else self._start()
        for part in delta.parts:
            match part:
                case Text(text):
                    events += self._begin(part) + self._delta("text_delta", "text", text)
                case Reasoning(text) if self._thinks:
                    events += self._begin(part)
                    events += self._delta("thinking_delta", "thinking", text) if self._shown else b""
                case ToolCall():
                    events += self._begin(part)
                    if part.arguments:
                        events += self._delta("input_json_delta", "partial_json", part.arguments)
                case Finish():
                    events += self._end_block() + self._finish(part)
        return events

    def end(self) -> bytes:
        """The end."""
        return _event("message_stop", {})

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The error, which is the end."""
        return b"event: error\ndata: %b\n\n" % error_body(error, request_id)

    def whole(self, choices: Sequence[Delta]) -> Iterator[bytes]:
        """The whole message."""
        [choice] = choices
        assert choice.finish is not None
        yield orjson.dumps(self._head)[:-1] + b',"content":['
        # What is not said of the model's thoughts does not part the text around it.
        said = join_parts(part for part in choice.parts if self._thinks or not isinstance(part, Reasoning))
        for number, part in enumerate(part for part in said if not isinstance(part, Finish)):
            self._calls |= isinstance(part, ToolCall)
            yield (b"," if number else b"") + self._block(part)
        ending = {**self._stop(choice.finish), "usage": usage_object(self._generation.usage)}
        yield b"]," + orjson.dumps(ending)[1:]

    def _block(self, part: Part) -> bytes:
        """A whole block."""
        match part:
            case Text(text):
                return orjson.dumps({"type": "text", "text": text})
            case Reasoning(text):
                thinking = text if self._shown else ""
                return orjson.dumps({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
            case ToolCall():
                return orjson.dumps(self._call(part))[:-1] + b',"input":' + _input(part.arguments) + b"}"
        raise AssertionError(part)

    def _call(self, part: ToolCall) -> dict[str, object]:
        call_id = self._generation.deployment.answers.tools.call_id(part.index, part.name)
        return {"type": "tool_use", "id": call_id, "name": part.name}

    def _start(self) -> bytes:
        self._begun = True
        usage = usage_object(self._generation.usage)
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return _event("message_start", {"message": message})

    def _begin(self, part: Part) -> bytes:
        """The beginning of a part's block, unless it is the one that is being written."""
        block = (type(part), part.index if isinstance(part, ToolCall) else 0)
        if block == self._open:
            return b""
        events = self._end_block()
        self._open = block
        match part:
            case Text():
                empty: dict[str, object] = {"type": "text", "text": ""}
            case Reasoning():
                empty = {"type": "thinking", "thinking": "", "signature": ""}
            case ToolCall():
                self._calls = True
                empty = {**self._call(part), "input": {}}
            case Finish():
                raise AssertionError(part)
        return events + _event("content_block_start", {"index": self._blocks, "content_block": empty})

    def _delta(self, kind: str, member: str, value: str) -> bytes:
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (
            self._blocks,
            orjson.dumps({"type": kind, member: value}),
        )

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        signature = self._delta("signature_delta", "signature", SIGNATURE) if self._open[0] is Reasoning else b""
        events = signature + _event("content_block_stop", {"index": self._blocks})
        self._open = None
        self._blocks += 1
        return events

    def _finish(self, finish: Finish) -> bytes:
        return _event("message_delta", {"delta": self._stop(finish), "usage": usage_object(self._generation.usage)})

    def _stop(self, finish: Finish) -> dict[str, Any]:
        """Why the message ends."""
        if finish.reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if finish.stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
        return {"stop_reason": "tool_use" if self._calls else "end_turn", "stop_sequence": None}


def _event(name: str, members: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **members}))


def _input(arguments: str) -> bytes:
    """A call's arguments as they stand. Those of a call that is cut are what a client makes of a stream that ends
    there."""
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        try:
            return json.dumps(pydantic_core.from_json(arguments, allow_inf_nan=False, allow_partial=True)).encode()
        except ValueError:
            return b"{}"
    return arguments.encode()
