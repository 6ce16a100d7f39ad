"""From the engine's tokens to parts: the one path that streamed and whole answers share, so that they are equal."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct

from octavo.engine.request import FinishReason, Output, TokenIds, TokenLogprobs
from octavo.text import Detokenizer, StopStrings, Tokenizer
from octavo.text.parser import Parser, PlainParser
from octavo.text.parts import Finish, Part, Text, join_parts
from octavo.text.repetition import Repetition

ECHO_PIECE = 512
"""Tokens of an echoed prompt in one delta: a long prompt is written in pieces of bounded size."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model continues: its ids, and the text they were made from if there was one."""

    token_ids: TokenIds
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How tokens become parts.

    Attributes:
        stop: strings that end a choice. include_stop: whether the text ends with them (and with stop tokens).
        skip_special_tokens: whether special tokens are left out of the text.
        stop_token_ids: those the client named; a choice that ends with one reports it as its stop reason.
        end_token_ids: all that end a choice, which are no part of its text.
        min_tokens: a stop string that is complete within so many tokens does not count, nor does a repetition.
        repetition: see `Stops`.
        echo: whether the text begins with the prompt.
        parser: makes what reads one choice's text. shown: special tokens that it must see.
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    stop_token_ids: frozenset[int] = frozenset()
    end_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    repetition: tuple[int, int, int] | None = None
    echo: bool = False
    parser: Callable[[], Parser] = PlainParser
    shown: frozenset[int] = frozenset()


class Score(NamedTuple):
    """A token with its log-probabilities (None for the first of a prompt), and where its text begins."""

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None


class Delta(Struct):
    """What is added to one choice at a time.

    Attributes:
        index: the choice, counted over all prompts of the request.
        parts: may be empty: half a character, and what may be the beginning of a stop string, is held back. The last
            delta of a choice ends with its `Finish`.
        token_ids: new tokens. scores: one entry per token, when asked for; never held back.
    """

    index: int
    parts: list[Part] = []
    token_ids: list[int] = []
    scores: list[Score] | None = None

    @property
    def text(self) -> str:
        """The text among the parts."""
        text = ""
        for part in self.parts:
            if isinstance(part, Text):
                text += part.text
        return text

    @property
    def finish(self) -> Finish | None:
        """The end of the choice, with its last delta."""
        parts = self.parts
        return parts[-1] if parts and isinstance(parts[-1], Finish) else None


def join(deltas: Sequence[Delta]) -> Delta:
    """All that was added to one choice, as one delta."""
    return Delta(
        deltas[0].index,
        join_parts(part for delta in deltas for part in delta.parts),
        [token for delta in deltas for token in delta.token_ids],
        [score for delta in deltas for score in delta.scores or ()]
        if any(delta.scores is not None for delta in deltas)
        else None,
    )


def _repeats() -> Finish:
    return Finish("repetition", "repetition_detected")  # vLLM's words


def _finish(reason: FinishReason, stop: str | int | None) -> Finish:
    if reason is FinishReason.TIMEOUT:  # which is no reason of any API's
        return Finish(str(FinishReason.LENGTH), str(FinishReason.TIMEOUT))
    return Finish(str(reason), stop)


class Choice:
    """One choice's tokens become parts, step by step."""

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: Prompt, options: TextOptions) -> None:
        self.index = index
        self.tokens = self.reasoning_tokens = 0
        self.finished = False
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._options = options
        self._detokenizer = Detokenizer(tokenizer, prompt.token_ids, options.skip_special_tokens, options.shown)
        self._stops = StopStrings(options.stop, options.include_stop) if options.stop else None
        self._parser = options.parser()
        self._parse = self._parser.push
        self._repetition = Repetition(*options.repetition) if options.repetition else None
        self._end: Finish | None = None  # found here; the engine finds the others
        self._offset = 0

    def begin(self, prompt_logprobs: Sequence[TokenLogprobs] | None) -> Iterator[Delta]:
        """The echoed prompt; `prompt_logprobs` has an entry for every token but the first. All of its text comes with
        the first delta, long lists of scores with several."""
        prompt, skip_special = self._prompt, self._options.skip_special_tokens
        if prompt.text is None:
            text = self._tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=skip_special)
        else:
            text = prompt.text
        parts: list[Part] = [Text(text)] if text else []
        if prompt_logprobs is None:
            yield Delta(self.index, parts)
        else:
            detokenizer = Detokenizer(self._tokenizer, (), skip_special)
            for start in range(0, len(prompt.token_ids), ECHO_PIECE):
                delta = Delta(self.index, parts if start == 0 else [], [], [])
                scores = delta.scores = []
                for position, token in enumerate(prompt.token_ids[start : start + ECHO_PIECE], start):
                    scores.append(Score(token, self._offset, prompt_logprobs[position - 1] if position else None))
                    self._offset += len(detokenizer.push(token))
                yield delta
        self._offset = len(text)

    def push(self, output: Output) -> Delta:
        """The engine's next tokens. Those after a stop string, or a pattern that came too often, do not count: they
        would not have been computed had the engine known."""
        options, token_ids, logprobs = self._options, output.token_ids, output.logprobs
        scores: list[Score] | None = None if logprobs is None else []
        parts: list[Part] = []
        text, stop = "", None
        ends, repeats = output.finish_reason is FinishReason.STOP, False
        for position, token in enumerate(token_ids):
            self.tokens += 1
            if scores is not None and logprobs is not None:
                scores.append(Score(token, self._offset, logprobs[position]))
            if ends and position == len(token_ids) - 1 and token in options.end_token_ids:
                stop = token if token in options.stop_token_ids else None
                if not options.include_stop:
                    break
            text += self._released(self._detokenizer.push(token))
            if self._parser.thinking:  # one by one: the tokens of reasoning are counted
                parts += self._parse(text)
                text = ""
                self.reasoning_tokens += 1
            if self._repetition is not None and self._repeats(token):  # where the engine ends it that is why
                repeats = output.finish_reason is None or position < len(token_ids) - 1
            if repeats or self._end is not None:
                token_ids = token_ids[: position + 1]
                break
        if self._end is None and (repeats or output.finish_reason is not None):
            text += self._released(self._detokenizer.flush())
            if self._end is None:
                text += "" if self._stops is None else self._stops.flush()
                self._end = (
                    _repeats() if output.finish_reason is None or repeats else _finish(output.finish_reason, stop)
                )
        if self._end is not None:
            parts += self._last(text, self._end)
        else:
            parts += self._parse(text)
        return Delta(self.index, parts, token_ids, scores)

    def _repeats(self, token: int) -> bool:
        assert self._repetition is not None
        return self._repetition.push(token) and self.tokens >= self._options.min_tokens

    def _last(self, text: str, finish: Finish) -> list[Part]:
        self.finished = True
        parts = [*self._parse(text), *self._parser.flush()]
        ended_by_model = finish.reason == FinishReason.STOP and finish.stop is None
        finish.cut_call = not ended_by_model and self._parser.in_call
        return [*parts, finish]

    def _released(self, text: str) -> str:
        """The text but for what may be a stop string's beginning; a whole one ends the choice."""
        self._offset += len(text)
        if self._stops is None:
            return text
        safe, found = self._stops.push(text, armed=self.tokens > self._options.min_tokens)
        if found is not None:
            self._end = Finish(str(FinishReason.STOP), found)
        return safe
