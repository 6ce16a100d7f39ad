"""What comes back: the names are vLLM's, so that programs written for it read the same here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octavo.deployments.generation import Usage

__all__ = ["CompletionOutput", "Logprob", "Logprobs", "RequestOutput", "StreamChunk", "Usage"]


class Logprob(NamedTuple):
    """A token's natural log-probability, its rank (None if it is not among those reported), its text."""

    logprob: float
    rank: int | None
    decoded_token: str


Logprobs = Mapping[int, Logprob]
"""Token id -> log-probability at one position: of the token there and of the most probable ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One choice.

    Attributes:
        token_ids: all that were generated, the stop token included.
        finish_reason: "stop", "length" or "repetition".
        stop_reason: the stop string, or the token of `stop_token_ids`, that ended it.
        logprobs: one entry per token, if asked for.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: Sequence[Logprobs] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt's choices. What belongs to a choice can be asked of the whole, and is that of the first one then.

    Attributes:
        prompt: the text, after the chat template if there was one; None for a prompt of token ids.
        prompt_logprobs: one entry per token of the prompt, if asked for; None for the first.
    """

    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    usage: Usage
    prompt_logprobs: Sequence[Logprobs | None] | None = None

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> Sequence[int]:
        """Of the first choice."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Of the first choice."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> Sequence[Logprobs] | None:
        """Of the first choice."""
        return self.outputs[0].logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChunk:
    """What one step of the engine adds to one choice; the fields are those of `CompletionOutput`.

    Attributes:
        text: may be empty: half a character, and what may be the beginning of a stop string, is held back.
        finish_reason: set with the last chunk of a choice.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Sequence[Logprobs] | None = None

    def __str__(self) -> str:
        return self.text
