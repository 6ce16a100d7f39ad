"""From a request's fields to the engine's parameters, checked against the model that is to run them."""

from collections.abc import Iterable

from octavo.deployments import Deployment
from octavo.engine.config import ModelInfo
from octavo.engine.request import SamplingParams
from octavo.server.errors import ApiError, context_length_exceeded, invalid
from octavo.server.generation import Prompt, TextOptions
from octavo.server.schema import GenerationBody

SEED_BITS = 63


def check(body: GenerationBody, info: ModelInfo) -> None:
    """Refuse what the schema cannot: what depends on the model or on two fields together.

    Raises:
        ApiError: 400 that names the field.
    """
    if body.n > info.max_num_seqs:
        raise invalid(f"'n' is {body.n}, but at most {info.max_num_seqs} choices run at once.", "n")
    if body.stream_options is not None and not body.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise invalid("'prompt_logprobs' is not available when 'stream' is true.", "prompt_logprobs")
    _check_ids("logit_bias", body.logit_bias, info)
    _check_ids("stop_token_ids", body.stop_token_ids, info)


def _check_ids(field: str, ids: Iterable[int], info: ModelInfo) -> None:
    wrong = next((token for token in ids if not 0 <= token < info.vocab_size), None)
    if wrong is not None:
        raise invalid(f"'{field}' has token id {wrong}; the model's ids go from 0 to {info.vocab_size - 1}.", field)


def check_prompt(prompt: Prompt, field: str, info: ModelInfo) -> None:
    """Refuse a prompt without tokens, or with some that the model does not know."""
    if not prompt.token_ids:
        raise invalid(f"'{field}' is empty: there must be at least one token to continue.", field)
    _check_ids(field, (min(prompt.token_ids), max(prompt.token_ids)), info)


def fit(prompt: Prompt, field: str, wanted: int | None, limit: int, default: int | None = None) -> int:
    """The number of tokens to generate.

    Args:
        field: where the prompt came from, for the error.
        wanted: what the client asked for. limit: tokens of prompt and output together.
        default: if the client asked for none; None is all there is room for.

    Raises:
        ApiError: 400 with code context_length_exceeded: the prompt, or both together, are too long.
    """
    length = len(prompt.token_ids)
    room = limit - length
    if wanted is not None and 0 < room < wanted:
        raise _too_long(
            limit,
            f"you requested {length + wanted} tokens ({length} in the {field}, {wanted} in the completion). "
            f"Please reduce the length of the {field} or completion.",
            field,
        )
    if room < (1 if wanted is None else min(wanted, 1)):
        raise _too_long(
            limit, f"your {field} resulted in {length} tokens. Please reduce the length of the {field}.", field
        )
    if wanted is not None:
        return wanted
    return room if default is None else min(default, room)


def _too_long(limit: int, however: str, field: str) -> ApiError:
    return context_length_exceeded(limit, however, field)


def sampling_params(
    body: GenerationBody,
    model: Deployment,
    info: ModelInfo,
    *,
    seed: int,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """Everything the engine needs to draw tokens.

    Args:
        seed: for a client that sends none. Drawn here and not by the engine: a request that must be resumed after a
            failure repeats its own draws.
    """
    if body.min_tokens > max_tokens:
        raise invalid(f"'min_tokens' is {body.min_tokens}, more than the {max_tokens} tokens allowed.", "min_tokens")
    defaults = model.defaults
    stop_token_ids = set(body.stop_token_ids)
    if not body.ignore_eos:
        stop_token_ids |= model.tokenizer.stop_token_ids
    return SamplingParams(
        n=body.n,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_k=min(max(defaults.top_k if body.top_k is None else body.top_k, 0), info.vocab_size),
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        repetition_penalty=(
            defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
        ),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        seed=seed if body.seed is None else body.seed % 2**SEED_BITS,
        stop_token_ids=tuple(sorted(stop_token_ids)),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def text_options(body: GenerationBody, *, echo: bool = False) -> TextOptions:
    """How the tokens become text."""
    return TextOptions(
        stop=tuple(body.stop),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        stop_token_ids=frozenset(body.stop_token_ids),
        min_tokens=body.min_tokens,
        echo=echo,
    )
