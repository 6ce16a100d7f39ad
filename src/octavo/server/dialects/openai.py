"""What OpenAI's chat and text completions have in common: fields, with vLLM's additions, chunks and errors."""

import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

import orjson
from pydantic import AfterValidator, Field

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation, Usage
from octavo.deployments.request import Conversation, GenerationRequest, RawPrompts, Stops, Truncation
from octavo.server.dialects.chunks import ChunkWriter, member
from octavo.server.dialects.dialect import Dialect, Writer
from octavo.server.dialects.logprobs import LogprobFormat
from octavo.server.errors import ERROR_RESPONSES, ApiError, error_body, invalid
from octavo.server.schema.base import Body, Ignored
from octavo.server.schema.sampling import RepetitionDetection, RequestId, SamplingBody, StopList
from octavo.server.schema.tokens import TokenId

MAX_TOP_LOGPROBS = 20

DONE = b"data: [DONE]\n\n"


class StreamOptions(Body):
    """What streams report beside text."""

    include_usage: bool = Field(False, description="One more chunk before the end, with the usage and no choices.")
    continuous_usage_stats: bool = Field(False, description="The usage so far in every chunk.")
    include_obfuscation: Ignored = None


def _some(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("a prompt has at least one token")
    return tokens


class OpenAIBody(SamplingBody):
    """The fields of both."""

    model: str = Field("", description="A name from /v1/models; the server's first model if absent.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, description="Choices per prompt.")
    stop: StopList = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=1024, fail_fast=True)
    include_stop_str_in_output: bool = False
    repetition_detection: RepetitionDetection | None = None
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = Field(None, description="Whether the tokenizer adds its own, such as BOS.")
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_tokens_as_token_ids: bool = Field(False, description="Tokens in logprobs appear as `token_id:N`.")
    return_token_ids: bool = Field(False, description="The ids of prompt and output beside the text.")
    priority: int | None = Field(
        None, ge=-(2**31), lt=2**31, description="Lower runs first; 0 if absent. The operator says which there are."
    )
    thinking_token_budget: int | None = Field(
        None, ge=0, le=2**31, description="Tokens after which a choice that still thinks goes on to its answer."
    )
    truncate_prompt_tokens: Annotated[int, AfterValidator(_some)] | None = Field(
        None, ge=-1, description="So many of the prompt's tokens are kept; -1 is what the context allows."
    )
    truncation_side: Literal["left", "right"] = Field("left", description="Where it is cut, if it is.")
    cache_salt: str = Field("", max_length=128, description="Requests share cached prefixes only under equal salts.")
    request_id: RequestId = Field("", max_length=128, description="What the answer's id ends with; made up if absent.")
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    session_id: Ignored = None
    store: Ignored = None
    user: Ignored = None

    def request(
        self,
        prompt: RawPrompts | Conversation,
        *,
        max_tokens: int | None,
        default_max_tokens: int | None = None,
        logprobs: int | None,
        echo: bool = False,
    ) -> GenerationRequest:
        """The request in no API's words.

        Raises:
            ApiError: 400: fields that do not go together.
        """
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise invalid("'prompt_logprobs' is not available when 'stream' is true.", "prompt_logprobs")
        return GenerationRequest(
            prompt=prompt,
            model=self.model,
            stream=self.stream,
            n=self.n,
            max_tokens=max_tokens,
            default_max_tokens=default_max_tokens,
            min_tokens=self.min_tokens,
            sampling=self.sampling(),
            stops=Stops(
                strings=self.stop,
                token_ids=self.stop_token_ids,
                include=self.include_stop_str_in_output,
                end_of_turn=not self.ignore_eos,
                repetition=self.repetition_detection.repetition if self.repetition_detection else None,
            ),
            skip_special_tokens=self.skip_special_tokens,
            echo=echo,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            priority=self.priority,
            cache_salt=self.cache_salt,
            constraint=self.constraint(),
            thinking_budget=self.thinking_token_budget,
            truncation=self._truncation(),
            timeout=self.timeout,
        )

    def _truncation(self) -> Truncation | None:
        tokens = self.truncate_prompt_tokens
        if tokens is None:
            return None
        return Truncation(tokens=None if tokens == -1 else tokens, keep_first=self.truncation_side == "right")


B = TypeVar("B", bound=OpenAIBody)


class OpenAIDialect(Dialect[B]):
    """Errors as OpenAI's clients unwrap them."""

    tag = "OpenAI"
    responses = ERROR_RESPONSES

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The body of an error response."""
        return orjson.dumps(error_body(error))


class OpenAIWriter(Writer):
    """Writes completions.

    Attributes:
        kind: the `object` of whole answers. chunk_kind: of chunks. id_prefix: what their ids begin with.
    """

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(self, body: OpenAIBody, generation: Generation, top_logprobs: int | None) -> None:
        """`top_logprobs`: how many are listed per token; None is no log-probabilities at all."""
        options = body.stream_options
        tokenizer = generation.deployment.tokenizer
        self._generation = generation
        self._head = {
            "id": f"{self.id_prefix}-{body.request_id or uuid.uuid4().hex}",
            "object": self.kind,
            "created": int(time.time()),
            "model": generation.deployment.name,
        }
        self._with_ids = body.return_token_ids
        self._include_usage = options is not None and options.include_usage
        self._continuous_usage = options is not None and options.continuous_usage_stats
        self._logprobs = (
            None if top_logprobs is None else LogprobFormat(tokenizer, top_logprobs, body.return_tokens_as_token_ids)
        )
        self._prompt_logprobs = None if body.prompt_logprobs is None else LogprobFormat(tokenizer, body.prompt_logprobs)
        self._chunk = ChunkWriter(self._head | {"object": self.chunk_kind}, self._include_usage)
        self._begun: set[int] = set()

    def _usage(self) -> dict[str, object]:
        """The usage so far."""
        return usage_object(self._generation.usage)

    def end(self) -> bytes:
        """The usage, if the client wants it, and the end."""
        return self._chunk.usage(self._usage()) + DONE if self._include_usage else DONE

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The error, and the end."""
        return b"data: %b\n\n%b" % (orjson.dumps(error_body(error)), DONE)

    def _prompt_scores(self, position: int) -> Iterator[bytes]:
        """vLLM's `prompt_logprobs` of one prompt as a member, if the client wants them."""
        scores = self._generation.prompt_logprobs[position]
        if self._prompt_logprobs is not None and scores is not None:
            yield b',"prompt_logprobs":'
            yield from self._prompt_logprobs.prompt_pieces(self._generation.prompts[position].token_ids, scores)

    def whole(self, choices: Sequence[Delta]) -> Iterator[bytes]:
        """The whole answer."""
        yield orjson.dumps(self._head)[:-1]
        separator = b',"choices":['
        for choice in choices:
            yield separator
            yield from self._choice(choice)
            separator = b","
        yield b"]" + member("usage", self._usage())
        yield from self._members()
        yield b"}"

    @abstractmethod
    def _choice(self, choice: Delta) -> Iterator[bytes]:
        """One of a whole answer's choices."""

    def _finish(self, choice: Delta) -> bytes:
        """How a choice ended, and its token ids if the client wants them."""
        assert choice.finish is not None
        end = member("finish_reason", self._reason(choice)) + member("stop_reason", choice.finish.stop)
        return end + member("token_ids", choice.token_ids) if self._with_ids else end

    def _reason(self, choice: Delta) -> str:
        """Why a choice ended, in OpenAI's words."""
        assert choice.finish is not None
        return choice.finish.reason

    def _members(self) -> Iterator[bytes]:
        """Further members of a whole answer."""
        return iter(())


def usage_object(usage: Usage) -> dict[str, object]:
    """OpenAI's object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
