"""What an engine is asked for and what it answers. Token ids only: the engine knows no text."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, overload

from octavo.errors import OctavoError

if TYPE_CHECKING:
    TokenIds = array[int]
    Floats = array[float]
else:
    TokenIds = Floats = array  # which has no parameters before Python 3.12
"""Int32 and Float32, compact: a server may hold millions of them."""


class FinishReason(StrEnum):
    """Why a choice ended; TIMEOUT says whoever waits for it, and never an engine."""

    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    ABORT = "abort"
    ERROR = "error"


class Refusal(StrEnum):
    """Why a request was not taken."""

    INVALID = "invalid"
    TOO_LONG = "too_long"
    OVERLOADED = "overloaded"


class RequestRefused(OctavoError):
    """The engine does not take a request. When it is overloaded, `retry_after` says in how many seconds it may."""

    def __init__(self, kind: Refusal, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """When a choice must stop thinking.

    Attributes:
        tokens: of a choice that still thinks when it has so many, `end` comes next whatever the model would write.
        begun: whether it thinks from its first token on; else once it begins with one of `opens`.
        opens, closes: what begins and ends thinking, as bytes of tokens.
        end: the tokens that end it, at least one.
    """

    tokens: int
    begun: bool
    opens: tuple[bytes, ...]
    closes: tuple[bytes, ...]
    end: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. Values arrive validated; the defaults are OpenAI's.

    Attributes:
        n: choices per prompt, sharing the prompt's pages.
        max_tokens: tokens to generate per choice at most, at least 1 (0 only together with `prompt_logprobs`).
        min_tokens: stop tokens are banned until this many have been generated.
        temperature: 0 is greedy.
        top_k: 0 is off. top_p, typical_p: in (0, 1], 1 is off. min_p: in [0, 1].
        repetition_penalty: over prompt and output, 1 is off. presence_penalty, frequency_penalty: over the output.
        logit_bias: token id -> value added to its logit.
        allowed_token_ids: the only tokens that may be drawn; empty for all.
        bad_words: sequences of tokens of which the last is not drawn after the others.
        seed: the key of the random numbers; choice i draws with `seed + i`.
        stop_token_ids: tokens that end a choice, the checkpoint's end-of-turn tokens among them unless ignored.
        logprobs: how many of the most probable tokens to report per generated token; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        grammar: what every choice must look like, in llguidance's language; empty for anything. Whoever asks has made
            sure that it can be compiled.
        thinking: how long it may think; None for as long as it likes.
    """

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""
    thinking: ThinkingBudget | None = None

    @property
    def penalises(self) -> bool:
        """Whether tokens that are there already become less likely."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def limits(self) -> bool:
        """Whether some tokens are not to be drawn."""
        return bool(self.allowed_token_ids or self.bad_words or self.thinking)

    @property
    def needs_vocabulary(self) -> bool:
        """Whether an engine must know the bytes of tokens."""
        return bool(self.grammar or self.thinking)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        request_id: unique among the live requests of an engine.
        prompt_token_ids: Int32, at least one id, each below the vocabulary size.
        params: how tokens are drawn.
        outputs: choice -> tokens already delivered, when a request resumes after an engine was lost.
        finished: choices that had already ended then.
        resumed: an engine had taken it before it was lost, so it is not refused for load.
        priority: lower runs first.
        tenant: whose fair share the request counts against; pages are shared within a tenant only.
        cache_salt: separates prefix-cache entries further; requests share pages only under equal salts.
    """

    request_id: str
    prompt_token_ids: TokenIds
    params: SamplingParams
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    resumed: bool = False
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token itself and of the most probable ones, best first."""

    logprob: float
    top_tokens: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)
class PromptLogprobs(Sequence[TokenLogprobs]):
    """What `TokenLogprobs` says for every position of a prompt: tens of thousands, which as objects of their own would
    hold up whoever reads them from a message.

    Attributes:
        logprobs: Float32[N]. top_tokens: Int32[N * K]. top_logprobs: Float32[N * K].
    """

    logprobs: Floats = field(default_factory=lambda: array("f"))
    top_tokens: TokenIds = field(default_factory=lambda: array("i"))
    top_logprobs: Floats = field(default_factory=lambda: array("f"))

    def __len__(self) -> int:
        return len(self.logprobs)

    @overload
    def __getitem__(self, position: int) -> TokenLogprobs: ...

    @overload
    def __getitem__(self, position: slice) -> list[TokenLogprobs]: ...

    def __getitem__(self, position: int | slice) -> TokenLogprobs | list[TokenLogprobs]:
        places = range(len(self))[position]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def _at(self, place: int) -> TokenLogprobs:
        width = len(self.top_tokens) // len(self.logprobs)
        top = slice(place * width, (place + 1) * width)
        return TokenLogprobs(self.logprobs[place], self.top_tokens[top].tolist(), self.top_logprobs[top].tolist())

    def extend(self, other: "PromptLogprobs") -> None:
        """Add the positions that come next."""
        self.logprobs.extend(other.logprobs)
        self.top_tokens.extend(other.top_tokens)
        self.top_logprobs.extend(other.top_logprobs)


@dataclass(slots=True, kw_only=True)
class Output:
    """What one step produced for one choice of one request.

    Attributes:
        request_id: the request. index: the choice.
        token_ids: new tokens in order, the stop token included when one ended the choice.
        logprobs: one entry per new token, when asked for.
        prompt_logprobs: one entry per prompt token but the first, with the first output of choice 0 only.
        finish_reason: set with the last tokens of the choice.
        cached_tokens: prompt tokens that came from the prefix cache. This and the next two come with the first output
            of each choice alone, never again after a preemption or a resumption.
        queue_seconds: from arrival to first scheduling. prefill_seconds: from then to the first token.
        error: one line, when `finish_reason` is ERROR. refused: it is what the request asks for that cannot be done.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    finish_reason: FinishReason | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    error: str | None = None
    refused: bool = False
