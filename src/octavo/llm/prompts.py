"""From what a program gives, text, token ids or messages, to requests in no API's words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeGuard

from octavo.deployments.request import Conversation, GenerationRequest, RawPrompts, Sampling, Stops, Truncation
from octavo.errors import InvalidRequest
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError
from octavo.grammar.structured import StructuredOutputsParams
from octavo.llm.params import SamplingParams
from octavo.text.repetition import repetition_of

PromptLike = str | Sequence[int]
"""Text, or the ids of its tokens."""

Messages = Sequence[Mapping[str, Any]]
"""A conversation: OpenAI's messages, each with a role and content."""

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each."""

ROLES = ("system", "developer", "user", "assistant", "tool")

GENERATE_MAX_TOKENS = 16
"""Unless something else is said, as in the completions API; a reply goes on to its end."""


def is_ids(value: object) -> TypeGuard[Sequence[int]]:
    """Whether this is a prompt of token ids."""
    return _is_sequence(value) and len(value) > 0 and all(isinstance(item, Integral) for item in value)


def is_messages(value: object) -> TypeGuard[Messages]:
    """Whether this is one conversation."""
    return _is_sequence(value) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def raw_requests(prompts: PromptLike | Sequence[PromptLike], params: Params) -> list[GenerationRequest]:
    """A request for each prompt.

    Raises:
        InvalidRequest: what is given are no prompts, or their parameters are not as many.
    """
    single = isinstance(prompts, str) or is_ids(prompts)
    if not single and not _is_sequence(prompts):
        raise InvalidRequest(f"prompts are texts or lists of token ids, not {type(prompts).__name__}")
    several: list[Any] = [prompts] if single else list(prompts)
    for position, prompt in enumerate(several):
        if not isinstance(prompt, str) and not is_ids(prompt):
            hint = "; for messages there is chat()" if isinstance(prompt, Mapping) or is_messages(prompt) else ""
            raise InvalidRequest(f"prompt {position} is neither a text nor a list of at least one token id{hint}")
    plain = [prompt if isinstance(prompt, str) else [int(token) for token in prompt] for prompt in several]
    return [
        _request(RawPrompts(prompts=[prompt]), *wanted, GENERATE_MAX_TOKENS)
        for prompt, wanted in zip(plain, _one_for_each(params, len(plain)), strict=True)
    ]


def chat_requests(
    conversations: Messages | Sequence[Messages], params: Params, **options: Any
) -> list[GenerationRequest]:
    """A request for each conversation.

    Args:
        options: further fields of every `Conversation`.

    Raises:
        InvalidRequest: what is given are no conversations, or their parameters are not as many.
    """
    several: Any = [conversations] if is_messages(conversations) else conversations
    if not _is_sequence(several):
        raise InvalidRequest(f"a conversation is a list of messages, not {type(several).__name__}")
    for position, conversation in enumerate(several):
        _check_conversation(conversation, f"conversation {position}")
    return [
        _request(Conversation(messages=[dict(message) for message in conversation], **options), *wanted, None)
        for conversation, wanted in zip(several, _one_for_each(params, len(several)), strict=True)
    ]


def stream_request(prompt: PromptLike | Messages, params: SamplingParams | None) -> GenerationRequest:
    """The request for one prompt or conversation.

    Raises:
        InvalidRequest: it is none, or several, or its parameters ask for what streams have not.
    """
    several: Any = prompt
    requests = chat_requests(several, params) if is_messages(prompt) else raw_requests(several, params)
    if len(requests) != 1:
        raise InvalidRequest(f"a stream continues one prompt, not {len(requests)}; begin one for each")
    if requests[0].prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs does not come with a stream; use generate() or chat()")
    return replace(requests[0], stream=True)


def _request(
    prompt: RawPrompts | Conversation,
    params: SamplingParams,
    constraint: Constraint | None,
    default_max_tokens: int | None,
) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        n=params.n,
        max_tokens=params.max_tokens,
        default_max_tokens=default_max_tokens,
        min_tokens=params.min_tokens,
        sampling=Sampling(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            typical_p=params.typical_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=dict(params.logit_bias),
            allowed_token_ids=params.allowed_token_ids,
            bad_words=params.bad_words,
            seed=params.seed,
        ),
        stops=Stops(
            strings=params.stop,
            token_ids=params.stop_token_ids,
            include=params.include_stop_str_in_output,
            end_of_turn=not params.ignore_eos,
            repetition=repetition_of(**params.repetition_detection or {}),
        ),
        skip_special_tokens=params.skip_special_tokens,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        constraint=constraint,
        thinking_budget=params.thinking_token_budget,
        truncation=_truncation(params),
        timeout=params.timeout,
    )


def _truncation(params: SamplingParams) -> Truncation | None:
    tokens = params.truncate_prompt_tokens
    if tokens is None:
        return None
    return Truncation(tokens=None if tokens == -1 else tokens, keep_first=params.truncation_side == "right")


def _one_for_each(params: Params, prompts: int) -> Sequence[tuple[SamplingParams, Constraint | None]]:
    """The parameters of each prompt, and what they want its choices to look like. Raises InvalidRequest."""
    if params is None or isinstance(params, SamplingParams):
        params = params or SamplingParams()
        return [(params, _constraint(params))] * prompts
    if not _is_sequence(params) or not all(isinstance(each, SamplingParams) for each in params):
        raise InvalidRequest("sampling_params are SamplingParams for all prompts, or a list with those of each")
    if len(params) != prompts:
        raise InvalidRequest(f"{len(params)} sampling_params for {prompts} prompts; give one, or one for each")
    constraints: dict[int, Constraint | None] = {}  # most often the same parameters again and again
    for position, each in enumerate(params):
        if id(each) in constraints:
            continue
        try:
            constraints[id(each)] = _constraint(each)
        except InvalidRequest as error:
            if prompts == 1:
                raise
            raise InvalidRequest(f"prompt {position}: {error}", error.field) from None
    return [(each, constraints[id(each)]) for each in params]


def _constraint(params: SamplingParams) -> Constraint | None:
    """What the choices must look like. Raises InvalidRequest: it cannot be kept to."""
    wanted = params.structured_outputs
    assert wanted is None or isinstance(wanted, StructuredOutputsParams), "a dict has become parameters"
    try:
        return None if wanted is None else _as_sent(wanted).constraint()
    except GrammarError as error:
        raise InvalidRequest(error.refusal, error.path) from error


def _as_sent(wanted: StructuredOutputsParams) -> StructuredOutputsParams:
    """The same with its schemas as a server would read them: a program's may have tuples, and values that are no JSON.
    Raises GrammarError."""
    return replace(
        wanted, json=_text(wanted.json, "json"), structural_tag=_text(wanted.structural_tag, "structural_tag")
    )


def _text(value: str | dict[str, Any] | None, name: str) -> str | None:
    try:
        return json.dumps(value) if isinstance(value, dict) else value
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"it is no JSON: {error}", f"structured_outputs.{name}") from error


def _check_conversation(conversation: object, where: str) -> None:
    if not is_messages(conversation):
        raise InvalidRequest(f"{where} is no list of at least one message, such as {{'role': 'user', 'content': 'Hi'}}")
    for number, message in enumerate(conversation):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InvalidRequest(f"{where}: message {number} has the role {role!r:.80}; use one of {', '.join(ROLES)}")
        if content is None and role != "assistant":
            raise InvalidRequest(f"{where}: message {number} of role {role} needs content")
        if not isinstance(content, str | None) and not _is_text_parts(content):
            raise InvalidRequest(f"{where}: message {number} has content that is neither text nor a list of text parts")


def _is_text_parts(content: object) -> bool:
    return _is_sequence(content) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether this holds several things. numpy's arrays do, and are no Sequence to Python."""
    return not isinstance(value, str | bytes | Mapping) and hasattr(value, "__len__") and hasattr(value, "__getitem__")
