"""POST /v1/completions"""

from collections.abc import Iterator
from typing import ClassVar

import orjson
from pydantic import Field

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.request import GenerationRequest, RawPrompts
from octavo.server.dialects.chunks import NULL, member
from octavo.server.dialects.openai import MAX_TOP_LOGPROBS, OpenAIBody, OpenAIDialect, OpenAIWriter
from octavo.server.errors import invalid
from octavo.server.schema.base import Unsupported
from octavo.server.schema.tokens import Prompts
from octavo.text.parts import Finish, Text

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


class CompletionRequest(OpenAIBody):
    """POST /v1/completions"""

    moved: ClassVar = {
        "max_completion_tokens": ("max_tokens",),
        "max_new_tokens": ("max_tokens",),
        "max_output_tokens": ("max_tokens",),
        "stop_sequences": ("stop",),
    }

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, description="16 if absent; 0 only together with echo.")
    echo: bool = Field(False, description="Begin with the prompt.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, description="Refused unless equal to n.")
    suffix: Unsupported = None


class CompletionWriter(OpenAIWriter):
    """Writes text completions."""

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl"

    def events(self, delta: Delta) -> bytes:
        """One event per step and choice."""
        text, finish = "", None
        for part in delta.parts:
            if isinstance(part, Text):
                text += part.text
            elif isinstance(part, Finish):
                finish = part
        if not (text or delta.scores or finish or (self._with_ids and delta.token_ids)):
            return b""
        logprobs, reason, extra = NULL, NULL, b""
        if self._logprobs is not None and delta.scores:
            logprobs = orjson.dumps(self._logprobs.completion(delta.scores))
        if finish is not None:
            reason, extra = orjson.dumps(finish.reason), member("stop_reason", finish.stop)
        if self._with_ids:
            extra += member("token_ids", delta.token_ids)
            if delta.index not in self._begun:
                self._begun.add(delta.index)
                extra += self._prompt_ids(delta)
        content, usage = b'"text":' + orjson.dumps(text), self._usage() if self._continuous_usage else None
        return self._chunk.choice(
            delta.index, content, logprobs=logprobs, finish_reason=reason, usage=usage, extra=extra
        )

    def _choice(self, choice: Delta) -> Iterator[bytes]:
        yield orjson.dumps({"index": choice.index, "text": choice.text})[:-1] + b',"logprobs":'
        yield from [NULL] if self._logprobs is None else self._logprobs.completion_pieces(choice.scores or ())
        yield self._finish(choice)
        if self._with_ids:
            yield self._prompt_ids(choice)
        yield from self._prompt_scores(self._generation.prompt_of(choice.index))
        yield b"}"

    def _prompt_ids(self, delta: Delta) -> bytes:
        generation = self._generation
        return member("prompt_token_ids", generation.prompts[generation.prompt_of(delta.index)].token_ids.tolist())


class Completions(OpenAIDialect[CompletionRequest]):
    """Continue prompts. With `stream` the answer comes as server-sent events."""

    path = "/v1/completions"
    body = CompletionRequest

    def parse(self, body: CompletionRequest) -> GenerationRequest:
        """The request in no API's words."""
        if body.best_of is not None and body.best_of != body.n:
            raise invalid("'best_of' other than 'n' is not supported.", "best_of")
        special = body.add_special_tokens is None or body.add_special_tokens
        return body.request(
            RawPrompts(prompts=body.prompt, add_special_tokens=special),
            max_tokens=body.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=body.logprobs,
            echo=body.echo,
        )

    def writer(self, body: CompletionRequest, generation: Generation) -> CompletionWriter:
        """What writes the answer."""
        return CompletionWriter(body, generation, body.logprobs)
