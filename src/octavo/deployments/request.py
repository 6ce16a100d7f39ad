"""What a client asks for, in no API's words: every dialect's body becomes one of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.grammar.constraint import Constraint
from octavo.text.tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPrompts:
    """Prompts to be continued as they are.

    Attributes:
        prompts: texts, or the ids of their tokens.
        add_special_tokens: whether texts get BOS and the like, as the tokenizer wants.
        field: what the API calls them, for errors.
    """

    prompts: Sequence[str | list[int]]
    add_special_tokens: bool = True
    field: str = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What the model may call.

    Attributes:
        tools: the client's functions; at least one.
        required: whether there must be a call. named: the function that must be called, if it is a certain one.
        parallel: whether there may be several calls.
        field: what the API calls the tools, for errors.
    """

    tools: Sequence[Tool]
    required: bool = False
    named: str | None = None
    parallel: bool = True
    field: str = "tools"

    @property
    def callable(self) -> Sequence[Tool]:
        """Those that may be called in this answer."""
        return self.tools if self.named is None else [tool for tool in self.tools if tool.name == self.named]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages that the model's chat template makes a prompt of.

    Attributes:
        messages: with OpenAI's keys, which templates are written for.
        variables: for the template, beside its own.
        variables_field: where the client set them, for errors.
        add_generation_prompt: end with the beginning of a reply; None is true unless the last message is continued.
        continue_final_message: go on with the last message instead of replying to it.
        add_special_tokens: templates write BOS and the like themselves.
        tool_use: what the model may call; None is nothing.
        documents: what the answer is to draw on, for templates that show it.
        template: in place of the model's own, where the operator trusts those of requests.
        field: what the API calls the messages, for errors.
    """

    messages: Sequence[dict[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    variables_field: str = "chat_template_kwargs"
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    tool_use: ToolUse | None = None
    documents: Sequence[dict[str, Any]] = ()
    template: str | None = None
    field: str = "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; None is for the deployment to say. Limits as in `octavo.engine.request.SamplingParams`; but
    `bad_words` are texts."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What ends a choice.

    Attributes:
        strings, token_ids: of the client.
        include: whether the text ends with them.
        end_of_turn: whether the model's own end-of-turn tokens end it too.
        repetition: the smallest and the largest pattern of tokens, and how often it has come when it ends the choice.
    """

    strings: Sequence[str] = ()
    token_ids: Sequence[int] = ()
    include: bool = False
    end_of_turn: bool = True
    repetition: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """How a prompt that is too long is cut.

    Attributes:
        tokens: so many are kept; None is what the context allows beside the answer.
        keep_first: the first ones are kept, and not the last.
    """

    tokens: int | None = None
    keep_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request of a client.

    Attributes:
        prompt: what to continue; several prompts are continued side by side.
        model: a deployment's name; empty is the server's first.
        stream: whether the answer comes as it arises.
        n: choices per prompt.
        max_tokens: of each choice; None is `default_max_tokens` as far as there is room, or, if that is None too, all
            there is room for. 0 only scores the prompt.
        min_tokens: nothing ends a choice before so many.
        skip_special_tokens: whether special tokens are left out of the text.
        echo: whether the text begins with the prompt; its tokens are then scored like the others.
        logprobs: how many of the most probable tokens are reported for each generated one; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        priority: lower runs first; None is the usual.
        cache_salt: requests share cached prefixes only under equal salts.
        constraint: what every choice must look like; None for anything.
        thinking_budget: tokens after which a choice that still thinks goes on to its answer; None is never.
        truncation: how prompts that are too long are cut; None refuses them.
        timeout: seconds from the request's arrival after which its choices end with what they have; None is never.
    """

    prompt: RawPrompts | Conversation
    model: str = ""
    stream: bool = False
    n: int = 1
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    min_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stops: Stops = field(default_factory=Stops)
    skip_special_tokens: bool = True
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    cache_salt: str = ""
    constraint: Constraint | None = None
    thinking_budget: int | None = None
    truncation: Truncation | None = None
    timeout: float | None = None
