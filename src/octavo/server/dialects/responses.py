"""OpenAI's Responses API: from its items to a request, and from parts to its items and events."""

import time
from http import HTTPStatus
from typing import Any

import orjson

from octavo.deployments.choice import Delta, Score
from octavo.deployments.generation import Generation, Usage
from octavo.deployments.prepare import Prepared
from octavo.deployments.request import Conversation, GenerationRequest, Stops
from octavo.server.dialects.dialect import ErrorWriter
from octavo.server.dialects.logprobs import LogprobFormat
from octavo.server.dialects.response_output import CallOutput, EventLog, MessageOutput, OutputItem, ReasoningOutput
from octavo.server.errors import ApiError, error_message, invalid
from octavo.server.schema.response_items import Items, messages_of, new_id
from octavo.server.schema.responses import ResponsesRequest
from octavo.server.schema.template import effort_variables
from octavo.text.parts import Finish, Part, Reasoning, Text, ToolCall


def generation_request(body: ResponsesRequest, earlier: Items, new: Items) -> GenerationRequest:
    """The request in no API's words.

    Args:
        earlier: the items of the responses that it goes on with. new: those of its own.

    Raises:
        ApiError: 400: fields that do not go together.
    """
    _check_calls(earlier, new)
    messages = messages_of([*earlier, *new])
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    variables = effort_variables(body.reasoning.effort)
    if body.text.verbosity is not None:
        variables["verbosity"] = body.text.verbosity
    return GenerationRequest(
        prompt=Conversation(
            messages=messages,
            variables=variables | body.chat_template_kwargs,
            tool_use=body.tool_use(),
            field="input",
        ),
        model=body.model,
        stream=body.stream,
        max_tokens=body.max_output_tokens,
        min_tokens=body.min_tokens,
        sampling=body.sampling(),
        stops=Stops(strings=body.stop, end_of_turn=not body.ignore_eos),
        logprobs=body.logprobs_wanted,
        priority=body.priority,
        cache_salt=body.cache_salt,
        constraint=body.constraint(),
        timeout=body.timeout,
    )


def _check_calls(earlier: Items, new: Items) -> None:
    """Refuse outputs of calls that nobody made."""
    called = {item["call_id"] for item in earlier if item["type"] == "function_call"}
    for number, item in enumerate(new):
        if item["type"] == "function_call":
            called.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in called:
            field = f"input[{number}].call_id"
            raise invalid(f"'{field}' is {item['call_id']!r}, which no function call before it has.", field)


def new_response(body: ResponsesRequest, prepared: Prepared) -> dict[str, Any]:
    """The object of a response that has just begun. What it repeats of the request may be long, and is said several
    times: it is in JSON already."""
    [params] = prepared.params
    echo = {name: orjson.Fragment(orjson.dumps(value)) for name, value in body.echo().items()}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": prepared.deployment.name,
        "output": [],
        "temperature": params.temperature,
        "top_p": params.top_p,
        "usage": None,
        **echo,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's object. What is written to the prefix cache costs nothing here, and is not counted."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


class ResponseWriter(ErrorWriter):
    """Makes a response of what a model says, and events of how it does so.

    Args:
        response: the object as it begins.
        logprobs: how many alternatives are reported for each token; None reports nothing.

    Attributes:
        response: the object as it is now, with the items that are complete.
    """

    def __init__(self, response: dict[str, Any], generation: Generation, logprobs: int | None) -> None:
        self.response = response
        self._generation = generation
        self._form = generation.deployment.answers.tools
        tokenizer = generation.deployment.tokenizer
        self._logprobs = None if logprobs is None else LogprobFormat(tokenizer, logprobs)
        self._events = EventLog()
        self._item: OutputItem | None = None
        self._held_scores: list[Score] = []

    @property
    def id(self) -> str:
        """The response's."""
        id: str = self.response["id"]  # noqa: A001
        return id

    @property
    def item_ids(self) -> list[str]:
        """Those of the items that are complete."""
        return [item["id"] for item in self.response["output"]]

    def begin(self) -> None:
        """Write events from now on, the first among them."""
        self._events.wanted = True
        for kind in ("created", self.response["status"]):
            self._events.emit(f"response.{kind}", response=self.response)

    def proceed(self) -> None:
        """A response that was queued is being worked on."""
        self.response["status"] = "in_progress"
        self._events.emit("response.in_progress", response=self.response)

    def flush(self) -> bytes:
        """The events that were written since the last time."""
        return self._events.take()

    def add(self, delta: Delta) -> None:
        """The model has said more."""
        scores = self._scores(delta)
        for part in delta.parts:
            match part:
                case Text(text):
                    self._open(MessageOutput, part).add(text, scores)
                    scores = []
                case Reasoning(text):
                    self._open(ReasoningOutput, part).add(text, [])
                case ToolCall(_, _, arguments):
                    self._open(CallOutput, part).add(arguments, [])
                case Finish("length", stop):
                    self._finish("incomplete", scores)
                    reason = "timeout" if stop == "timeout" else "max_output_tokens"
                    self.response["incomplete_details"] = {"reason": reason}
                case Finish(cut_call=True):
                    self._finish("incomplete", scores)
                    self.response["incomplete_details"] = {"reason": "max_output_tokens"}  # the API has no better one
                case Finish():
                    self._finish("completed", scores)
                    self.response["completed_at"] = int(time.time())

    def end(self) -> bytes:
        """The last event. There is none for what was cancelled but that it has failed."""
        status = self.response["status"]
        self._events.emit("response.failed" if status == "cancelled" else f"response.{status}", response=self.response)
        return self.flush()

    def cancel(self) -> None:
        """The response is not wanted any more. What there is of it stays."""
        self._break_off()
        self.response |= {"status": "cancelled", "completed_at": None, "error": None}

    def fail(self, error: ApiError) -> None:
        """The response went wrong."""
        self._break_off()
        code = "server_error" if error.status_code >= 500 else "invalid_prompt"
        if error.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            code = "rate_limit_exceeded"
        self.response |= {"status": "failed", "error": {"code": code, "message": error_message(error)}}

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The end of a stream that went wrong."""
        self.fail(error)
        return self.end()

    def _scores(self, delta: Delta) -> list[dict[str, Any]]:
        """The log-probabilities of a message's text: tokens whose text is held back count to what comes next, those
        of thoughts and calls are left out."""
        if self._logprobs is None:
            return []
        self._held_scores += delta.scores or ()
        if not delta.parts:
            return []
        scores, self._held_scores = self._held_scores, []
        if any(isinstance(part, Text) for part in delta.parts) or isinstance(self._item, MessageOutput):
            return self._logprobs.chat(scores)
        return []

    def _open(self, kind: type[OutputItem], part: Part) -> OutputItem:
        """The item that a part belongs to."""
        call = part.index if isinstance(part, ToolCall) else 0
        if isinstance(self._item, kind) and self._item.call == call:
            return self._item
        self._close("completed")
        index = len(self.response["output"])
        match part:
            case ToolCall(_, name):
                call_id = self._form.call_id(call, name)
                self._item = CallOutput(self._events, index, call, call_id=call_id, name=name)
            case _:
                self._item = kind(self._events, index)
        self._item.begin()
        return self._item

    def _close(self, status: str) -> None:
        if self._item is not None:
            self.response["output"].append(self._item.end(status))
            self._item = None

    def _break_off(self) -> None:
        self._close("incomplete")
        usage = self._generation.usage
        if usage.completion_tokens:  # before the first token nothing is known of the work
            self.response["usage"] = usage_object(usage)

    def _finish(self, status: str, scores: list[dict[str, Any]]) -> None:
        if self._item is None and not self.response["output"]:
            self._open(MessageOutput, Text(""))
        if scores and isinstance(self._item, MessageOutput):
            self._item.add("", scores)
        self._close(status)
        self.response["status"] = status
        self.response["usage"] = usage_object(self._generation.usage)
