"""POST /v1/messages, and what POST /v1/messages/count_tokens has in common with it."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from octavo.deployments.generation import Generation
from octavo.deployments.request import Conversation, GenerationRequest, Stops, ToolUse
from octavo.grammar.constraint import Constraint
from octavo.server.dialects.anthropic import ERROR_SCHEMA, OVERLOADED, MessageWriter, error_body, error_status
from octavo.server.dialects.dialect import Dialect
from octavo.server.errors import ApiError, error_responses, invalid
from octavo.server.schema.anthropic import (
    FIELDS,
    JsonFormat,
    OutputConfig,
    Thinking,
    ToolDecision,
    ToolDefinitions,
    thinking_variables,
)
from octavo.server.schema.base import Body, Ignored, Unsupported
from octavo.server.schema.blocks import TextContent, Turns
from octavo.server.schema.sampling import SamplingBody, StopString
from octavo.server.schema.template import Variables
from octavo.server.schema.tools import function_tools, tool_use
from octavo.server.schema.turns import template_messages

MAX_STOP_SEQUENCES = 16

ERROR_RESPONSES = error_responses(ERROR_SCHEMA)
ERROR_RESPONSES[OVERLOADED] = ERROR_RESPONSES.pop(503)


class CountTokensRequest(Body):
    """POST /v1/messages/count_tokens: what makes a prompt."""

    generates = False

    model: str = Field("", description="A name from /v1/models; the server's first model if absent.")
    messages: Turns
    system: TextContent = ""
    tools: ToolDefinitions = Field([], description="Functions that the model may call.")
    tool_choice: ToolDecision | None = Field(None, description='Whether it may, must, and which; "auto" if absent.')
    thinking: Thinking | None = Field(None, description="Whether it thinks first; up to the model if absent.")
    output_config: OutputConfig | None = None
    chat_template_kwargs: Variables = Field({}, description="Variables for the model's chat template.")
    mcp_servers: Unsupported = None
    cache_control: Ignored = None
    context_management: Ignored = None
    speed: Ignored = None

    def conversation(self) -> Conversation:
        """What is said, and what may be called. Raises ApiError: 400."""
        return Conversation(
            messages=template_messages(self.system, self.messages),
            variables=thinking_variables(self.thinking, self.output_config) | self.chat_template_kwargs,
            continue_final_message=self.messages[-1].role == "assistant",
            tool_use=self._tool_use(),
        )

    def _tool_use(self) -> ToolUse | None:
        paths = [f"tools[{number}]" for number in range(len(self.tools))]
        tools = function_tools([tool.function() for tool in self.tools], paths, FIELDS)
        decision = self.tool_choice
        if decision is None:
            return tool_use(tools, None, parallel=True, fields=FIELDS)
        return tool_use(tools, decision.choice, parallel=not decision.disable_parallel_tool_use, fields=FIELDS)


class MessagesRequest(SamplingBody, CountTokensRequest):
    """POST /v1/messages"""

    generates = True
    schema_field = "output_config.format"
    moved: ClassVar = {
        "max_completion_tokens": ("max_tokens",),
        "max_new_tokens": ("max_tokens",),
        "max_output_tokens": ("max_tokens",),
        "reasoning_effort": ("output_config.effort",),
        "stop": ("stop_sequences",),
    }

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=1)
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_SEQUENCES, fail_fast=True)] = Field([])
    stream: bool = False
    output_format: JsonFormat | None = Field(None, description="Old name of output_config.format.")
    metadata: Ignored = None
    service_tier: Ignored = None
    diagnostics: Ignored = None
    inference_geo: Ignored = None
    container: Unsupported = None

    def constraint(self) -> Constraint | None:
        """What the answer must look like. Raises ApiError: it cannot be kept to, or two things are asked for."""
        asked = (
            self.output_config.constraint() if self.output_config else None,
            self.output_format.constraint("output_format") if self.output_format else None,
            super().constraint(),
        )
        wanted = [constraint for constraint in asked if constraint is not None]
        if len(wanted) > 1:
            first, second = wanted[0].field, wanted[1].field
            raise invalid(f"'{first}' and '{second}' exclude each other.", second)
        return wanted[0] if wanted else None


class Messages(Dialect[MessagesRequest]):
    """Reply to a conversation, as Anthropic's API does. With `stream` the answer comes as server-sent events."""

    path = "/v1/messages"
    tag = "Anthropic"
    body = MessagesRequest
    responses: ClassVar[dict[int | str, dict[str, Any]]] = ERROR_RESPONSES

    def parse(self, body: MessagesRequest) -> GenerationRequest:
        """The request in no API's words."""
        budget = body.thinking.budget_tokens if body.thinking else None
        if budget is not None and budget >= body.max_tokens:
            message = f"'thinking.budget_tokens' is {budget}, but must be less than 'max_tokens', {body.max_tokens}."
            raise invalid(message, "thinking.budget_tokens")
        return GenerationRequest(
            prompt=body.conversation(),
            model=body.model,
            stream=body.stream,
            max_tokens=body.max_tokens,
            min_tokens=body.min_tokens,
            sampling=body.sampling(),
            stops=Stops(strings=body.stop_sequences, end_of_turn=not body.ignore_eos),
            constraint=body.constraint(),
            timeout=body.timeout,
            thinking_budget=budget,
        )

    def writer(self, body: MessagesRequest, generation: Generation) -> MessageWriter:
        """What writes the answer."""
        thinking = body.thinking
        return MessageWriter(
            generation,
            thinks=thinking is None or thinking.type != "disabled",
            shown=thinking is None or thinking.display != "omitted",
        )

    def status(self, error: ApiError) -> int:
        """The status of an error response."""
        return error_status(error)

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The body of an error response."""
        return error_body(error, request_id)
