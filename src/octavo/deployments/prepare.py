"""From what a client asks for to what an engine is asked for: template, tokens, and every check that needs the model.

All of it is synchronous, and takes its time for a long prompt.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from octavo.deployments.choice import Prompt, TextOptions
from octavo.deployments.deployment import Deployment
from octavo.deployments.prompt_logprobs import check_prompt_logprobs, prompt_logprobs
from octavo.deployments.request import Conversation, GenerationRequest, RawPrompts, Truncation
from octavo.deployments.shape import Shape, shape_of
from octavo.engine.config import ModelInfo
from octavo.engine.request import SamplingParams, ThinkingBudget
from octavo.errors import InvalidRequest
from octavo.text import TemplateError, TooManyTokens
from octavo.text.bounds import WORK_LIMIT
from octavo.text.encoding import whole_characters
from octavo.text.formats import JSON
from octavo.text.template import RESERVED, ChatTemplate

MAX_CUT_TOKENS = 2**18
"""Of a prompt that is cut to what is wanted of it."""

PROMPT_END = 64
"""Tokens that tell whether an answer begins with reasoning."""

MAX_CHOICES = 1024
"""Of all prompts of a request together."""

SEED_BITS = 63

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that is ready for the engine.

    Attributes:
        deployment: answers it.
        prompts: what is continued. params: for each of them.
        options: how the tokens become parts.
    """

    request: GenerationRequest
    deployment: Deployment
    prompts: Sequence[Prompt]
    params: Sequence[SamplingParams]
    options: TextOptions

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer has log-probabilities, which make it long."""
        return any(params.logprobs is not None or params.prompt_logprobs is not None for params in self.params)


def prepare(
    request: GenerationRequest,
    deployment: Deployment,
    info: ModelInfo,
    draw_seed: Callable[[], int],
    *,
    work: int = WORK_LIMIT,
) -> Prepared:
    """Render, tokenise and check a request.

    Args:
        info: of the deployment's engine.
        draw_seed: gives a prompt its seed if the client sends none. Drawn here and not by the engine: a request that
            must be resumed after a failure repeats its own draws.
        work: what a chat template may take, in the units of `octavo.text.bounds`.

    Raises:
        InvalidRequest: it names the field; a TemplateOutOfWork is its cause if `work` does not suffice.
        NotCompiled: the request has a grammar that must be compiled first.
    """
    _check(request, info)
    encoded: Iterable[Encoded]
    if request.truncation is None:
        encoded = _encode_up_to(info.max_model_len, request, deployment, work)
    else:
        limit = max(info.max_model_len, MAX_CUT_TOKENS)
        kept = _kept_tokens(request, request.truncation, info)
        encoded = [
            _cut(each, kept, request.truncation, deployment) for each in _encode_up_to(limit, request, deployment, work)
        ]
    prompts = [_checked(each, request, info) for each in encoded]
    check_prompt_logprobs(request, sum(len(prompt.token_ids) for prompt in prompts))
    shape = shape_of(request, deployment, prompts[0].text)
    bad_words = _spelled(request.sampling.bad_words, deployment, info)
    params = [
        replace(
            _sampling_params(request, prompt, deployment, info, draw_seed()),
            grammar=shape.grammar,
            bad_words=bad_words,
            thinking=_thinking(request, prompt, deployment),
        )
        for prompt in prompts
    ]
    _check_left(params[0], info)
    return Prepared(
        request=request,
        deployment=deployment,
        prompts=prompts,
        params=params,
        options=_text_options(request, shape, params[0].stop_token_ids),
    )


class Encoded(NamedTuple):
    """A prompt's ids, as they come, and the text they were made from if the client sent text."""

    token_ids: list[int]
    text: str | None = None


def encode(
    deployment: Deployment, prompt: RawPrompts | Conversation, limit: int, work: int = WORK_LIMIT
) -> Iterator[Encoded]:
    """The tokens to continue, prompt by prompt.

    Raises:
        InvalidRequest: the model has no chat template, or the template does not take this conversation.
        TooManyTokens: a text has more tokens than `limit`.
    """
    if isinstance(prompt, Conversation):
        yield _encode_chat(deployment, prompt, limit, work)
        return
    tokenizer, special = deployment.tokenizer, prompt.add_special_tokens
    for item in prompt.prompts:
        if isinstance(item, str):
            yield Encoded(tokenizer.encode(item, add_special_tokens=special, limit=limit), whole_characters(item))
        else:
            yield Encoded(item)


def _encode_up_to(limit: int, request: GenerationRequest, deployment: Deployment, work: int) -> Iterator[Encoded]:
    """What `encode` yields. A text that is too long is refused like a prompt of token ids."""
    try:
        yield from encode(deployment, request.prompt, limit, work)
    except TooManyTokens as error:
        if request.truncation is not None:
            message = f"'{request.prompt.field}' has more than the {limit} tokens that can be cut to what is wanted"
            raise InvalidRequest(message, request.prompt.field) from error
        raise _prompt_too_long(limit, error.count, request.prompt.field, at_least=not error.exact) from error


def _kept_tokens(request: GenerationRequest, truncation: Truncation, info: ModelInfo) -> int:
    """How many tokens of a prompt are kept at most. Raises InvalidRequest: the model has no room for so many."""
    if truncation.tokens is None:
        wanted = request.default_max_tokens if request.max_tokens is None else request.max_tokens
        return max(info.max_model_len - (1 if wanted is None else wanted), 1)
    if truncation.tokens > info.max_model_len:
        message = f"'truncate_prompt_tokens' is {truncation.tokens}, more than the model's context of"
        raise InvalidRequest(f"{message} {info.max_model_len} tokens", "truncate_prompt_tokens")
    return truncation.tokens


def _cut(encoded: Encoded, kept: int, truncation: Truncation, deployment: Deployment) -> Encoded:
    """A prompt's last or first tokens, and what they say."""
    if len(encoded.token_ids) <= kept:
        return encoded
    ids = encoded.token_ids[:kept] if truncation.keep_first else encoded.token_ids[-kept:]
    text = None if encoded.text is None else deployment.tokenizer.decode(ids, skip_special_tokens=False)
    return Encoded(ids, text)


def _encode_chat(deployment: Deployment, chat: Conversation, limit: int, work: int) -> Encoded:
    tokenizer, template = deployment.tokenizer, _template(deployment, chat)
    if clash := RESERVED.intersection(chat.variables):
        name, where = min(clash), chat.variables_field
        raise InvalidRequest(f"'{name}' is a field of its own, not of {where}", f"{where}.{name}")
    generation_prompt = chat.add_generation_prompt
    if generation_prompt is None:
        generation_prompt = not chat.continue_final_message
    tools, messages = None, chat.messages
    if chat.tool_use is not None:
        tools = [tool.for_template() for tool in chat.tool_use.tools]
        if "tools" not in template.source:
            messages = _with_instructions(messages, JSON.instructions(chat.tool_use.tools))
    try:
        if any(message.get("tool_calls") for message in messages) and not template.shows_calls(with_tools=bool(tools)):
            messages = [_with_written_calls(message) if message.get("tool_calls") else message for message in messages]
        text = template.render(
            messages,
            work,
            tools=tools,
            documents=chat.documents,
            add_generation_prompt=generation_prompt,
            continue_final_message=chat.continue_final_message,
            **chat.variables,
        )
    except RecursionError as error:
        raise InvalidRequest("A tool call's arguments are nested too deep", chat.field) from error
    except TemplateError as error:
        raise InvalidRequest(str(error), chat.field if chat.template is None else "chat_template") from error
    to_ids = tokenizer.encode if deployment.allow_special_tokens_in_messages else tokenizer.encode_rendered
    ids = to_ids(text, add_special_tokens=chat.add_special_tokens, limit=limit)
    return Encoded(ids, whole_characters(text))


def _template(deployment: Deployment, chat: Conversation) -> ChatTemplate:
    """What makes the conversation a prompt. Raises InvalidRequest."""
    if chat.template is not None:
        if not deployment.trust_request_chat_template:
            message = (
                "A chat template comes with the model; one of a request's own is used only by a server that was "
                "started with --trust-request-chat-template"
            )
            raise InvalidRequest(message, "chat_template")
        template = deployment.tokenizer.template_of(chat.template)
    elif deployment.tokenizer.chat_template is not None:
        template = deployment.tokenizer.chat_template
    else:
        raise InvalidRequest("This model has no chat template; send a prompt that it can continue", chat.field)
    if chat.documents and "documents" not in template.source:
        message = "This model's chat template does not show 'documents'; put them into a message"
        raise InvalidRequest(message, "documents")
    return template


def _with_instructions(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """A conversation that tells of tools, for templates that do not."""
    first, *others = messages
    if first.get("role") != "system" or not isinstance(first.get("content"), str):
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{text}"}, *others]


def _with_written_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls stand in its content, for templates that do not show any."""
    content, calls = message.get("content"), JSON.written(message["tool_calls"])
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    if isinstance(content, list):
        return {**others, "content": [*content, {"type": "text", "text": calls}]}
    return {**others, "content": f"{content}\n{calls}" if content else calls}


def _check(request: GenerationRequest, info: ModelInfo) -> None:
    if request.n > info.max_num_seqs:
        raise InvalidRequest(f"'n' is {request.n}, but at most {info.max_num_seqs} choices run at once", "n")
    _check_ids("logit_bias", request.sampling.logit_bias, info)
    _check_ids("allowed_token_ids", request.sampling.allowed_token_ids, info)
    _check_ids("stop_token_ids", request.stops.token_ids, info)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("'max_tokens' may be 0 only together with 'echo'", "max_tokens")
    most = min(
        MAX_CHOICES, info.max_num_seqs + info.max_num_queued_reqs
    )  # more would be refused on an idle server, too
    if isinstance(request.prompt, RawPrompts) and (prompts := len(request.prompt.prompts)) * request.n > most:
        raise InvalidRequest(
            f"{prompts} prompts with {request.n} choices each are more than the {most} choices that can run and wait",
            "prompt" if request.n == 1 else "n",
        )


def _check_ids(field: str, ids: Iterable[int], info: ModelInfo) -> None:
    wrong = next((token for token in ids if not 0 <= token < info.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"'{field}' has token id {wrong}; the model's ids go from 0 to {info.vocab_size - 1}", field
        )


def _checked(encoded: Encoded, request: GenerationRequest, info: ModelInfo) -> Prompt:
    field, length = request.prompt.field, len(encoded.token_ids)
    if length == 0:
        raise InvalidRequest(f"'{field}' is empty: there must be at least one token to continue", field)
    if length > info.max_model_len:  # before every id is looked at
        raise _prompt_too_long(info.max_model_len, length, field)
    _check_ids(field, (min(encoded.token_ids), max(encoded.token_ids)), info)
    return Prompt(array("i", encoded.token_ids), encoded.text)


def _room(request: GenerationRequest, prompt: Prompt, limit: int) -> int:
    """The number of tokens to generate. Prompt and output together have at most `limit`."""
    field, wanted, length = request.prompt.field, request.max_tokens, len(prompt.token_ids)
    room = limit - length
    if wanted is not None and 0 < room < wanted:
        raise _too_long(
            limit,
            f"you requested {length + wanted} tokens ({length} in the {field}, {wanted} in the completion). "
            f"Please reduce the length of the {field} or completion",
            field,
            (length, wanted),
        )
    if room < (1 if wanted is None else min(wanted, 1)):
        raise _prompt_too_long(limit, length, field)
    if wanted is not None:
        return wanted
    return room if request.default_max_tokens is None else min(request.default_max_tokens, room)


def _prompt_too_long(limit: int, length: int, field: str, *, at_least: bool = False) -> InvalidRequest:
    count = f"at least {length}" if at_least else str(length)
    return _too_long(limit, f"your {field} resulted in {count} tokens. Please reduce the length of the {field}", field)


def _too_long(limit: int, however: str, field: str, lengths: tuple[int, int] | None = None) -> InvalidRequest:
    """In OpenAI's wording, by which agents recognise that they must shorten the conversation."""
    message = f"This model's maximum context length is {limit} tokens. However, {however}"
    return InvalidRequest(message, field, context_length=limit, lengths=lengths)


def _sampling_params(
    request: GenerationRequest, prompt: Prompt, deployment: Deployment, info: ModelInfo, seed: int
) -> SamplingParams:
    max_tokens = _room(request, prompt, info.max_model_len)
    if request.min_tokens > max_tokens:
        message = f"'min_tokens' is {request.min_tokens}, more than the {max_tokens} tokens allowed"
        raise InvalidRequest(message, "min_tokens")
    sampling, defaults = request.sampling, deployment.defaults
    stop_token_ids = set(request.stops.token_ids)
    if request.stops.end_of_turn:
        stop_token_ids |= deployment.tokenizer.stop_token_ids
    return SamplingParams(
        n=request.n,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=_given(sampling.temperature, defaults.temperature),
        top_k=min(max(_given(sampling.top_k, defaults.top_k), 0), info.vocab_size),
        top_p=_given(sampling.top_p, defaults.top_p),
        typical_p=_given(sampling.typical_p, defaults.typical_p),
        min_p=_given(sampling.min_p, defaults.min_p),
        repetition_penalty=_given(sampling.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        allowed_token_ids=tuple(sampling.allowed_token_ids),
        seed=seed if sampling.seed is None else sampling.seed % 2**SEED_BITS,
        stop_token_ids=tuple(sorted(stop_token_ids)),
        logprobs=request.logprobs,
        prompt_logprobs=prompt_logprobs(request),
    )


def _spelled(words: Sequence[str], deployment: Deployment, info: ModelInfo) -> tuple[tuple[int, ...], ...]:
    """All the ways in which the tokenizer writes words, at the beginning of a text and after others. Raises
    InvalidRequest for a word that it cannot write with tokens that the model knows."""
    spelled: dict[tuple[int, ...], None] = {}
    for number, word in enumerate(words):
        ways = [tuple(ids) for ids in deployment.tokenizer.spellings(word) if all(n < info.vocab_size for n in ids)]
        if not ways:
            raise InvalidRequest(f"'bad_words' has {word!r:.80}, which this model cannot write", f"bad_words[{number}]")
        spelled |= dict.fromkeys(ways)
    return tuple(spelled)


def _check_left(params: SamplingParams, info: ModelInfo) -> None:
    """Refuse a request of which no token could be drawn."""
    if not params.limits:
        return
    never = {word[0] for word in params.bad_words if len(word) == 1}
    ends = params.stop_token_ids if params.min_tokens else ()
    if never.union(ends).issuperset(params.allowed_token_ids or range(info.vocab_size)):
        field = "allowed_token_ids" if params.allowed_token_ids else "bad_words"
        besides = ["'bad_words'"] * bool(never and params.allowed_token_ids) + ["'min_tokens'"] * bool(ends)
        given = " together with " + " and ".join(besides) if besides else ""
        raise InvalidRequest(f"'{field}'{given} leaves no token to draw", field)


def _thinking(request: GenerationRequest, prompt: Prompt, deployment: Deployment) -> ThinkingBudget | None:
    """When a choice must stop thinking; None also for a model that does not think.

    Raises:
        InvalidRequest: the model does not mark what it thinks in a way that can be cut off.
    """
    answers, tokenizer = deployment.answers, deployment.tokenizer
    if request.thinking_budget is None or not answers.end_of_reasoning:
        return None
    if answers.reasoning is None:
        message = "'thinking_token_budget' is not supported with this model, whose answers are written in channels"
        raise InvalidRequest(message, "thinking_token_budget")
    text = prompt.text
    if text is None:
        text = tokenizer.decode(prompt.token_ids[-PROMPT_END:].tolist(), skip_special_tokens=False)
    return ThinkingBudget(
        tokens=request.thinking_budget,
        begun=answers.is_thinking(text),
        opens=tuple(mark.encode() for mark in answers.reasoning.opens),
        closes=tuple(mark.encode() for mark in (*answers.reasoning.closes, *answers.reasoning.interrupts)),
        end=tuple(tokenizer.encode_within(answers.end_of_reasoning)),
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _text_options(request: GenerationRequest, shape: Shape, end_token_ids: Iterable[int]) -> TextOptions:
    return TextOptions(
        stop=tuple(request.stops.strings),
        include_stop=request.stops.include,
        skip_special_tokens=request.skip_special_tokens,
        stop_token_ids=frozenset(request.stops.token_ids),
        end_token_ids=frozenset(end_token_ids),
        min_tokens=request.min_tokens,
        repetition=request.stops.repetition,
        echo=request.echo,
        parser=shape.parser,
        shown=shape.shown,
    )
