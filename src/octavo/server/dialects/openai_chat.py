"""POST /v1/chat/completions"""

from collections.abc import Iterator
from typing import Any, Literal

import orjson
from pydantic import Field

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.request import GenerationRequest
from octavo.server.dialects.chunks import NULL, member
from octavo.server.dialects.openai import MAX_TOP_LOGPROBS, OpenAIBody, OpenAIDialect, OpenAIWriter
from octavo.server.errors import invalid
from octavo.server.schema.base import Unsupported
from octavo.server.schema.messages import Messages
from octavo.server.schema.template import TemplateOptions
from octavo.text.parts import Finish, Text

MAX_TOOLS = 1024


ToolChoice = Literal["none", "auto"]


class ChatCompletionRequest(OpenAIBody, TemplateOptions):
    """POST /v1/chat/completions"""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="Old name of max_completion_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[dict[str, Any]] = Field(
        [], max_length=MAX_TOOLS, fail_fast=True, description='Not supported yet unless tool_choice is "none".'
    )
    tool_choice: ToolChoice | None = None
    reasoning_effort: str | None = Field(None, description="A variable for the model's chat template.")
    modalities: list[Literal["text"]] = Field([], max_length=16, fail_fast=True)
    audio: Unsupported = None
    echo: Unsupported = None
    function_call: ToolChoice | None = Field(None, description="Old name of tool_choice.")
    functions: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None


class ChatWriter(OpenAIWriter):
    """Writes chat completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def events(self, delta: Delta) -> bytes:
        """The role comes together with the first token, so that clients that time the first chunk time that token."""
        write, usage = self._chunk.choice, self._usage() if self._continuous_usage else None
        text, finish, events = "", None, b""
        for part in delta.parts:
            if isinstance(part, Text):
                text += part.text
            elif isinstance(part, Finish):
                finish = part
        if delta.index not in self._begun:
            ids = self._generation.prompts[0].token_ids
            top = member("prompt_token_ids", ids.tolist()) if self._with_ids and not self._begun else b""
            self._begun.add(delta.index)
            events = write(delta.index, b'"delta":{"role":"assistant","content":""}', usage=usage, top=top)
        if text or delta.scores or (self._with_ids and delta.token_ids):
            logprobs = NULL
            if self._logprobs is not None and delta.scores:
                logprobs = orjson.dumps({"content": self._logprobs.chat(delta.scores), "refusal": None})
            extra = member("token_ids", delta.token_ids) if self._with_ids else b""
            content = b'"delta":{"content":%b}' % orjson.dumps(text)
            events += write(delta.index, content, logprobs=logprobs, usage=usage, extra=extra)
        if finish is not None:
            reason, extra = orjson.dumps(finish.reason), member("stop_reason", finish.stop)
            events += write(delta.index, b'"delta":{}', finish_reason=reason, usage=usage, extra=extra)
        return events

    def _choice(self, choice: Delta) -> Iterator[bytes]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        yield orjson.dumps({"index": choice.index, "message": message})[:-1] + b',"logprobs":'
        yield from [NULL] if self._logprobs is None else self._logprobs.chat_pieces(choice.scores or ())
        yield self._finish(choice)
        yield b"}"

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
        if body.tools and body.tool_choice != "none":
            raise invalid('Tools are not supported; send tool_choice "none" or no tools.', "tools")
        variables = {"reasoning_effort": body.reasoning_effort} if body.reasoning_effort else {}
        return body.request(
            body.conversation(body.messages, body.add_special_tokens, variables),
            max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
            logprobs=body.top_logprobs if body.logprobs else None,
        )

    def writer(self, body: ChatCompletionRequest, generation: Generation) -> ChatWriter:
        """What writes the answer."""
        return ChatWriter(body, generation, body.top_logprobs if body.logprobs else None)
