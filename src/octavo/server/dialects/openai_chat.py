"""POST /v1/chat/completions"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.request import GenerationRequest, ToolUse
from octavo.server.dialects.calls import Calls, message_of
from octavo.server.dialects.chunks import NULL, member
from octavo.server.dialects.openai import MAX_TOP_LOGPROBS, OpenAIBody, OpenAIDialect, OpenAIWriter
from octavo.server.errors import invalid
from octavo.server.schema.base import Ignored, Unsupported, UnsupportedSchema
from octavo.server.schema.messages import Messages
from octavo.server.schema.template import Effort, TemplateOptions, effort_variables
from octavo.server.schema.tools import (
    MAX_TOOLS,
    Function,
    FunctionName,
    Functions,
    NamedChoice,
    ToolChoice,
    ToolFields,
    function_tools,
    tool_use,
)


class ChatCompletionRequest(OpenAIBody, TemplateOptions):
    """POST /v1/chat/completions"""

    moved: ClassVar = {
        "max_new_tokens": ("max_completion_tokens", "max_tokens"),
        "max_output_tokens": ("max_completion_tokens", "max_tokens"),
        "stop_sequences": ("stop",),
        "system": ("messages",),
    }

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="Old name of max_completion_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Functions = Field([], description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description='Whether it may, must, and which; "auto" if absent.')
    parallel_tool_calls: bool = Field(True, description="Whether there may be several calls.")
    functions: list[Function] = Field([], max_length=MAX_TOOLS, fail_fast=True, description="Old name of tools.")
    function_call: Literal["none", "auto"] | FunctionName | None = Field(None, description="Old name of tool_choice.")
    reasoning_effort: Effort | None = Field(None, description="How much to think; what that does is up to the model.")
    include_reasoning: bool = Field(True, description="Whether the reply says what the model thought.")
    modalities: list[Literal["text"]] = Field([], max_length=16, fail_fast=True)
    audio: Unsupported = None
    echo: Unsupported = None
    prediction: Unsupported = None
    verbosity: Ignored = None
    web_search_options: UnsupportedSchema = None

    def tool_use(self) -> ToolUse | None:
        """What the model may call. Raises ApiError: 400."""
        if not self.functions and not isinstance(self.function_call, FunctionName):
            paths = [f"tools[{number}].function" for number in range(len(self.tools))]
            tools = function_tools([tool.function for tool in self.tools], paths)
            return tool_use(tools, self.tool_choice or self.function_call, parallel=self.parallel_tool_calls)
        if self.tools or self.tool_choice is not None:
            raise invalid("'functions' and 'function_call' are old names of 'tools' and 'tool_choice': use one kind.")
        paths = [f"functions[{number}]" for number in range(len(self.functions))]
        choice: ToolChoice | None = None
        if isinstance(self.function_call, FunctionName):
            choice = NamedChoice(function=self.function_call)
        elif self.function_call is not None:
            choice = self.function_call
        functions = function_tools(self.functions, paths)
        return tool_use(functions, choice, parallel=False, fields=ToolFields("functions", "function_call", name="name"))


class ChatWriter(OpenAIWriter):
    """Writes chat completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(self, body: ChatCompletionRequest, generation: Generation) -> None:
        super().__init__(body, generation, body.top_logprobs if body.logprobs else None)
        self._calls = Calls(generation.deployment.answers.tools, old=bool(body.functions))
        self._may_call = body.tool_use() is not None
        self._reasons = body.include_reasoning

    def events(self, delta: Delta) -> bytes:
        """The role comes together with the first token, so that clients that time the first chunk time that token."""
        write, usage = self._chunk.choice, self._usage() if self._continuous_usage else None
        events, finish = b"", delta.finish
        said = message_of(delta, self._calls, reasons=self._reasons)
        if delta.index not in self._begun:
            ids = self._generation.prompts[0].token_ids
            top = member("prompt_token_ids", ids.tolist()) if self._with_ids and not self._begun else b""
            self._begun.add(delta.index)
            # Clients join what they get: a call has no text, and not an empty one.
            content = b"null" if self._may_call and "content" not in said else b'""'
            events = write(delta.index, b'"delta":{"role":"assistant","content":%b}' % content, usage=usage, top=top)
        if said or delta.scores or (self._with_ids and delta.token_ids):
            logprobs = NULL
            if self._logprobs is not None and delta.scores:
                logprobs = orjson.dumps({"content": self._logprobs.chat(delta.scores), "refusal": None})
            extra = member("token_ids", delta.token_ids) if self._with_ids else b""
            content = b'"delta":' + orjson.dumps(said or {"content": ""})
            events += write(delta.index, content, logprobs=logprobs, usage=usage, extra=extra)
        if finish is not None:
            reason, extra = orjson.dumps(self._reason(delta)), member("stop_reason", finish.stop)
            events += write(delta.index, b'"delta":{}', finish_reason=reason, usage=usage, extra=extra)
        return events

    def _choice(self, choice: Delta) -> Iterator[bytes]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        message |= message_of(choice, self._calls, reasons=self._reasons)
        if self._calls.begun(choice.index) and not choice.text:
            message["content"] = None
        for call in message.get("tool_calls", ()):
            del call["index"]  # which is for streams
        yield orjson.dumps({"index": choice.index, "message": message})[:-1] + b',"logprobs":'
        yield from [NULL] if self._logprobs is None else self._logprobs.chat_pieces(choice.scores or ())
        yield self._finish(choice)
        yield b"}"

    def _reason(self, choice: Delta) -> str:
        assert choice.finish is not None
        calls = choice.finish.reason == "stop" and self._calls.begun(choice.index) and not choice.finish.cut_call
        return self._calls.reason if calls else super()._reason(choice)

    def _members(self) -> Iterator[bytes]:
        if self._with_ids:
            yield member("prompt_token_ids", self._generation.prompts[0].token_ids.tolist())
        yield from self._prompt_scores(0)


class ChatCompletions(OpenAIDialect[ChatCompletionRequest]):
    """Reply to a conversation. With `stream` the answer comes as server-sent events."""

    path = "/v1/chat/completions"
    body = ChatCompletionRequest

    def parse(self, body: ChatCompletionRequest) -> GenerationRequest:
        """The request in no API's words."""
        if body.top_logprobs and not body.logprobs:
            raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        conversation = body.conversation(
            body.messages, body.add_special_tokens, effort_variables(body.reasoning_effort)
        )
        return body.request(
            replace(conversation, tool_use=body.tool_use()),
            max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
            logprobs=body.top_logprobs if body.logprobs else None,
        )

    def writer(self, body: ChatCompletionRequest, generation: Generation) -> ChatWriter:
        """What writes the answer."""
        return ChatWriter(body, generation)
