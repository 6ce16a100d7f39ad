"""What becomes of a sequence with a step, and what is told of it."""

from octavo.engine.request import FinishReason, Output
from octavo.engine.sequence import Sequence
from octavo.grammar.errors import GrammarError
from octavo.grammar.matcher import Matcher


def note_first(output: Output, sequence: Sequence, now: float) -> None:
    """What is told with a choice's first tokens."""
    started = sequence.first_scheduled or now
    output.cached_tokens = sequence.cached_tokens
    output.queue_seconds = started - sequence.arrival
    output.prefill_seconds = now - started
    if sequence.wants_prompt_logprobs:
        output.prompt_logprobs = sequence.prompt_logprobs


def follow(matcher: Matcher, sequence: Sequence, tokens: list[int], room: int) -> tuple[list[int], bool]:
    """Tokens that were drawn and those that a grammar then leaves no choice about; and whether nothing can follow.

    Without a draw there is no log-probability to tell of, and what is banned is for the draw to find out.
    """
    matcher.check()
    if tokens[-1] in sequence.stop_token_ids:
        return tokens, True
    forcing = sequence.params.logprobs is None and not len(sequence.bias_ids) and not sequence.is_limited
    advance = matcher.advance(tokens, room - len(tokens) if forcing else 0)
    tokens = tokens + advance.forced
    written, least = sequence.length - sequence.prompt_length + len(tokens), sequence.params.min_tokens
    if advance.complete and written < least:
        raise GrammarError(f"min_tokens is {least}, but the grammar is complete after {written} tokens")
    return tokens, advance.complete


def failed(sequence: Sequence, message: str, *, refused: bool = False) -> Output:
    """What is told of a sequence that cannot go on. refused: because of what its request asks for."""
    return Output(
        request_id=sequence.request.request_id,
        index=sequence.index,
        finish_reason=FinishReason.ERROR,
        error=message,
        refused=refused,
    )


def undrawable(sequence: Sequence, position: int) -> Output:
    """What is told of a sequence whose request leaves no token to draw."""
    params = sequence.params
    asked = {
        "the grammar": params.grammar,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": params.bad_words,
        "logit_bias": params.logit_bias,
        "min_tokens": params.min_tokens,
        "thinking_token_budget": params.thinking,
    }
    *others, last = [name for name, value in asked.items() if value] or ["what it asks for"]
    together = f"{', '.join(others)} and {last} leave" if others else f"{last} leaves"
    after = position - sequence.prompt_length
    message = f"{together} no token to draw after {after} {'token' if after == 1 else 'tokens'} of the answer"
    return failed(sequence, message, refused=True)


def failure(error: Exception) -> str:
    """What its request is told of an exception."""
    return f"the engine failed on this request: {type(error).__name__}"
