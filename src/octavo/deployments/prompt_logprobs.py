"""How much is reported of a prompt's own tokens."""

from octavo.deployments.request import GenerationRequest
from octavo.errors import InvalidRequest

MAX_PROMPT_LOGPROBS = 2**20
"""Log-probabilities of a request's prompts, counted once for each choice: a hundred megabytes. 32,768 tokens with 20
alternatives have room."""


def prompt_logprobs(request: GenerationRequest) -> int | None:
    """How many alternatives the engine must report: for `prompt_logprobs`, for an echo, or because nothing else is
    wanted. None is no report."""
    wanted = [request.prompt_logprobs]
    if request.echo:
        wanted.append(request.logprobs)
    if request.max_tokens == 0:
        wanted.append(0)
    return max((count for count in wanted if count is not None), default=None)


def check_prompt_logprobs(request: GenerationRequest, tokens: int) -> None:
    """Refuse what there is no memory for. Text completions have them once for each choice.

    Args:
        tokens: of all the prompts together.

    Raises:
        InvalidRequest: it says what would work.
    """
    alternatives = prompt_logprobs(request)
    if alternatives is None:
        return
    count = tokens * request.n * (1 + alternatives)
    if count <= MAX_PROMPT_LOGPROBS:
        return
    field = "logprobs" if request.echo and request.logprobs == alternatives else "prompt_logprobs"
    if choices := MAX_PROMPT_LOGPROBS // (tokens * (1 + alternatives)):
        field, instead = "n", f"'n' may be at most {choices}"
    elif each := MAX_PROMPT_LOGPROBS // (tokens * request.n):
        instead = f"'{field}' may be at most {each - 1}"
    else:
        most = MAX_PROMPT_LOGPROBS // (request.n * (1 + alternatives))
        field, instead = request.prompt.field, f"the {request.prompt.field} may have at most {most:,} tokens"
    raise InvalidRequest(
        f"the log-probabilities of {tokens:,} prompt tokens, each with {alternatives} alternatives and for {request.n} "
        f"choices, are {count:,}, but a request may have {MAX_PROMPT_LOGPROBS:,} of them: {instead}",
        field,
    )
