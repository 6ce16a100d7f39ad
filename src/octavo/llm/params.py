"""How tokens are drawn, as a program asks for it."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from octavo.errors import InvalidRequest
from octavo.grammar.structured import StructuredOutputsParams

__all__ = ["SamplingParams", "StructuredOutputsParams", "nearest"]

MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_ALLOWED_TOKEN_IDS = 2**16
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 128
MAX_LOGPROBS = 20
MAX_TIMEOUT = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and when a choice ends; the names and limits are those of the HTTP API.

    Attributes:
        n: choices per prompt.
        max_tokens: tokens per choice at most. None: 16 after `generate`, what the context allows after `chat`.
        min_tokens: stop tokens are banned, stop strings not looked for, until so many have been generated.
        temperature: 0 is greedy. None, here and for top_p, typical_p, top_k, min_p and repetition_penalty: what the
            model's authors recommend, else what leaves the distribution alone.
        top_p, typical_p: in (0, 1]. top_k: 0 and -1 are off. min_p: in [0, 1].
        repetition_penalty: over prompt and output, 1 is off. presence_penalty, frequency_penalty: over the output.
        logit_bias: token id -> value added to its logit.
        allowed_token_ids: the only tokens that may be drawn; empty for all. bad_words: texts that are not generated.
        seed: makes sampling repeatable; choice i draws with `seed + i`. None: another one for every prompt.
        stop: strings that end a choice. include_stop_str_in_output: whether the text ends with them.
        stop_token_ids: tokens that end a choice, beside the model's own. ignore_eos: go on past the model's own.
        skip_special_tokens: whether the text leaves special tokens out.
        logprobs: so many of the most probable tokens are reported per generated token; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        thinking_token_budget: a choice that still thinks after so many tokens goes on to its answer.
        truncate_prompt_tokens: so many of the prompt's tokens are kept if it has more; -1 is what the context allows.
        truncation_side: "left" keeps the last ones, "right" the first.
        timeout: seconds after which a prompt that the model has been given ends with the tokens that are there.
        repetition_detection: a choice ends whose last tokens are a pattern that came `min_count` times in a row, of
            `min_pattern_size` (1 if it is not there) to `max_pattern_size` tokens.
        structured_outputs: what every choice must look like; a dict has the names of `StructuredOutputsParams`.

    Raises:
        InvalidRequest: a value outside its limits, in one line.
        TypeError: a name that is not among these.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    typical_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    thinking_token_budget: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    timeout: float | None = None
    repetition_detection: Mapping[str, int] | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None

    def __new__(cls, **given: Any) -> "SamplingParams":
        """Refuse unknown names with the nearest known one."""
        known = [known.name for known in fields(cls)]
        for name in given.keys() - known:
            raise TypeError(f"SamplingParams has no {name!r}{nearest(name, known)}")
        return object.__new__(cls)

    def __post_init__(self) -> None:
        _Checks(self).run()


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant, as the end of a sentence; empty if none is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Checks:
    """Brings a SamplingParams' values to plain types, or says in one line what is wrong with them."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def run(self) -> None:
        self._integer("n", 1)
        self._integer("max_tokens", 1)
        self._integer("min_tokens", 0)
        self._real("temperature", 0, 2)
        self._real("top_p", 0, 1, open_below=True)
        self._real("typical_p", 0, 1, open_below=True)
        self._integer("top_k", -1)
        self._real("min_p", 0, 1)
        self._real("presence_penalty", -2, 2)
        self._real("frequency_penalty", -2, 2)
        self._real("repetition_penalty", 0.01, 100)
        self._integer("seed", -(2**63), 2**63 - 1)
        self._integer("logprobs", 0, MAX_LOGPROBS)
        self._integer("prompt_logprobs", 0, MAX_LOGPROBS)
        self._integer("thinking_token_budget", 0, 2**31)
        self._integer("truncate_prompt_tokens", -1)
        if self._params.truncate_prompt_tokens == 0:
            raise self._wrong("truncate_prompt_tokens", "a whole number of at least 1, or -1")
        if self._params.truncation_side not in ("left", "right"):
            raise self._wrong("truncation_side", "'left' or 'right'")
        self._real("timeout", 0, MAX_TIMEOUT, open_below=True)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self._params, name), bool):
                raise self._wrong(name, "True or False")
        if isinstance(self._params.stop, str):
            self._set("stop", (self._params.stop,))
        self._strings("stop", MAX_STOPS, MAX_STOP_LENGTH)
        self._strings("bad_words", MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH)
        self._token_ids("stop_token_ids", MAX_STOP_TOKEN_IDS)
        self._token_ids("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS)
        self._logit_bias()
        self._repetition_detection()
        self._structured_outputs()
        params = self._params
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise InvalidRequest(f"min_tokens is {params.min_tokens}, more than max_tokens, {params.max_tokens}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self._params, name, value)

    def _wrong(self, name: str, right: str) -> InvalidRequest:
        return InvalidRequest(f"{name} is {getattr(self._params, name)!r:.80}, but must be {right}")

    def _integer(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self._params, name)
        if value is None and _may_be_none(name):
            return
        right = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
        number = _whole(value)
        if number is None or number < least or (most is not None and number > most):
            raise self._wrong(name, right)
        self._set(name, number)

    def _real(self, name: str, least: float, most: float, *, open_below: bool = False) -> None:
        value = getattr(self._params, name)
        if value is None and _may_be_none(name):
            return
        right = f"above {least:g} and at most {most:g}" if open_below else f"from {least:g} to {most:g}"
        number = _number(value)
        if number is None or not (least < number if open_below else least <= number) or not number <= most:
            raise self._wrong(name, right)
        self._set(name, number)

    def _strings(self, name: str, most: int, longest: int) -> None:
        strings = getattr(self._params, name)
        right = f"at most {most} strings of 1 to {longest} characters"
        if isinstance(strings, str) or not isinstance(strings, Sequence) or len(strings) > most:
            raise self._wrong(name, right)
        if not all(isinstance(string, str) and 1 <= len(string) <= longest for string in strings):
            raise self._wrong(name, right)
        self._set(name, tuple(strings))

    def _token_ids(self, name: str, most: int) -> None:
        ids = getattr(self._params, name)
        right = f"at most {most} token ids"
        if isinstance(ids, str | bytes) or not isinstance(ids, Sequence) or len(ids) > most:
            raise self._wrong(name, right)
        tokens = [_whole(token) for token in ids]
        if any(token is None or token < 0 for token in tokens):
            raise self._wrong(name, right)
        self._set(name, tuple(tokens))

    def _logit_bias(self) -> None:
        bias = self._params.logit_bias
        right = "token ids with values from -100 to 100"
        if not isinstance(bias, Mapping):
            raise self._wrong("logit_bias", right)
        plain = {_whole(token): _number(value) for token, value in bias.items()}
        for token, value in plain.items():
            if token is None or token < 0 or value is None or not -100 <= value <= 100:
                raise self._wrong("logit_bias", right)
        self._set("logit_bias", plain)

    def _repetition_detection(self) -> None:
        wanted = self._params.repetition_detection
        if wanted is None:
            return
        if not isinstance(wanted, Mapping):
            raise self._wrong("repetition_detection", "a dict")
        from octavo.text.repetition import MAX_COUNT, MAX_PATTERN, repetition_of

        plain = {}
        for name, value in wanted.items():
            most = {"min_count": MAX_COUNT, "min_pattern_size": MAX_PATTERN, "max_pattern_size": MAX_PATTERN}.get(name)
            number = _whole(value)
            if most is None or number is None or not 0 <= number <= most:
                right = f"min_count, up to {MAX_COUNT}, min_pattern_size and max_pattern_size, up to {MAX_PATTERN}"
                raise self._wrong("repetition_detection", right)
            plain[name] = number
        try:
            repetition_of(**plain)
        except ValueError as error:
            raise InvalidRequest(f"repetition_detection: {error}", "repetition_detection") from error
        self._set("repetition_detection", plain)

    def _structured_outputs(self) -> None:
        wanted = self._params.structured_outputs
        if wanted is None or isinstance(wanted, StructuredOutputsParams):
            return
        if not isinstance(wanted, Mapping):
            raise self._wrong("structured_outputs", "StructuredOutputsParams or a dict")
        known = [known.name for known in fields(StructuredOutputsParams)]
        for name in wanted:
            if name not in known:
                raise InvalidRequest(f"structured_outputs has no {name!r:.80}{nearest(str(name), known)}")
        self._set("structured_outputs", StructuredOutputsParams(**wanted))


def _whole(value: object) -> int | None:
    """A whole number, numpy's included, as Python's; None for anything else."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def _number(value: object) -> float | None:
    """A number, numpy's included, as Python's; None for anything else."""
    return None if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def _may_be_none(name: str) -> bool:
    return SamplingParams.__dataclass_fields__[name].default is None
