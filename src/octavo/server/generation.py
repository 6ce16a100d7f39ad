"""From the engine's tokens to text: the one path that streamed and whole answers share, so that they are equal."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.deployments import Deployment
from octavo.engine.client import EngineFailed, EngineUnavailable, OutputStream
from octavo.engine.request import FinishReason, Output, Refusal, Request, RequestRefused, TokenLogprobs
from octavo.errors import OctavoError
from octavo.server import errors
from octavo.server.metrics import GenerationMetrics, Trace
from octavo.server.request_context import RequestContext
from octavo.text import Detokenizer, StopStrings, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model continues: its ids, and the text they were made from if the client sent text."""

    token_ids: list[int]
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How tokens become text.

    Attributes:
        stop: strings that end a choice. include_stop: whether the text ends with them (and with stop tokens).
        skip_special_tokens: whether special tokens are left out of the text.
        stop_token_ids: those the client named; a choice that ends with one reports it as its stop reason.
        min_tokens: a stop string that is complete within so many tokens does not count.
        echo: whether the text begins with the prompt.
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    echo: bool = False


class Score(NamedTuple):
    """A token with its log-probabilities (None for the first of a prompt), and where its text begins."""

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None


@dataclass(slots=True)
class Delta:
    """What one engine step adds to one choice.

    Attributes:
        index: the choice, counted over all prompts of the request.
        text: may be empty: half a character, and what may be the beginning of a stop string, is held back.
        token_ids: new tokens. scores: one entry per token, when asked for; never held back.
        finish_reason: "stop" or "length" with the last delta of a choice.
        stop_reason: the stop string, or the client's stop token, that ended it.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    scores: list[Score] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


def join(deltas: Sequence[Delta]) -> Delta:
    """All that was added to one choice, as one delta."""
    whole = Delta(deltas[0].index)
    whole.text = "".join([delta.text for delta in deltas])
    whole.token_ids = [token for delta in deltas for token in delta.token_ids]
    if any(delta.scores is not None for delta in deltas):
        whole.scores = [score for delta in deltas for score in delta.scores or ()]
    whole.finish_reason, whole.stop_reason = deltas[-1].finish_reason, deltas[-1].stop_reason
    return whole


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request so far; a prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def as_dict(self) -> dict[str, object]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


class Choice:
    """One choice's tokens become text, step by step."""

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: Prompt, options: TextOptions) -> None:
        self.index = index
        self.tokens = 0
        self.finished = False
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._options = options
        self._detokenizer = Detokenizer(tokenizer, prompt.token_ids, options.skip_special_tokens)
        self._stops = StopStrings(options.stop, options.include_stop) if options.stop else None
        self._offset = 0

    def begin(self, prompt_logprobs: Sequence[TokenLogprobs] | None) -> Delta:
        """The echoed prompt; `prompt_logprobs` has an entry for every token but the first."""
        prompt, skip_special = self._prompt, self._options.skip_special_tokens
        delta = Delta(self.index)
        if prompt_logprobs is not None:
            detokenizer = Detokenizer(self._tokenizer, (), skip_special)
            delta.scores = []
            for token, logprobs in zip(prompt.token_ids, (None, *prompt_logprobs), strict=True):
                delta.scores.append(Score(token, self._offset, logprobs))
                self._offset += len(detokenizer.push(token))
        if prompt.text is None:
            delta.text = self._tokenizer.decode(prompt.token_ids, skip_special_tokens=skip_special)
        else:
            delta.text = prompt.text
        self._offset = len(delta.text)
        return delta

    def push(self, output: Output) -> Delta:
        """The engine's next tokens. Those after a stop string do not count: they would not have been computed
        had the engine known text."""
        options, token_ids, logprobs = self._options, output.token_ids, output.logprobs
        delta = Delta(self.index, "", token_ids, None if logprobs is None else [])
        ends = output.finish_reason is FinishReason.STOP
        for position, token in enumerate(token_ids):
            self.tokens += 1
            if delta.scores is not None and logprobs is not None:
                delta.scores.append(Score(token, self._offset, logprobs[position]))
            if ends and position == len(token_ids) - 1:
                delta.stop_reason = token if token in options.stop_token_ids else None
                if not options.include_stop:
                    break
            self._append(delta, self._detokenizer.push(token))
            if self.finished:
                delta.token_ids = token_ids[: position + 1]
                return delta
        if output.finish_reason is not None:
            self._append(delta, self._detokenizer.flush())
            if not self.finished:
                self.finished = True
                delta.finish_reason = str(output.finish_reason)
                if self._stops is not None:
                    delta.text += self._stops.flush()
        return delta

    def _append(self, delta: Delta, text: str) -> None:
        """Add text but for what may be a stop string's beginning; a whole one ends the choice."""
        self._offset += len(text)
        if self._stops is None:
            delta.text += text
            return
        safe, match = self._stops.push(text, armed=self.tokens > self._options.min_tokens)
        delta.text += safe
        if match is not None:
            self.finished = True
            delta.finish_reason = str(FinishReason.STOP)
            delta.stop_reason = match


class Generation:
    """All the choices of one HTTP request. Leaving the context aborts what has not ended.

    Args:
        requests: one per prompt, with the same number of choices each.
        context: learns how many tokens came of it.
    """

    def __init__(
        self,
        model: Deployment,
        prompts: Sequence[Prompt],
        requests: Sequence[Request],
        metrics: GenerationMetrics,
        options: TextOptions,
        context: RequestContext,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.prompt_logprobs: list[list[TokenLogprobs] | None] = [None] * len(prompts)
        self._requests = requests
        self._metrics = metrics
        self._context = context
        self._traces: list[Trace] = []
        self._options = options
        self._width = requests[0].params.n
        self._choices: dict[int, Choice] = {}
        self._cached_tokens = [0] * len(prompts)
        self._streams: list[OutputStream] = []
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def num_choices(self) -> int:
        """Choices of all prompts together."""
        return len(self.prompts) * self._width

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            sum(len(prompt.token_ids) for prompt in self.prompts),
            sum(choice.tokens for choice in self._choices.values()),
            sum(self._cached_tokens),
        )

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *exception: object) -> None:
        for pump in self._pumps:
            pump.cancel()
        for stream in self._streams:
            stream.abort()
        for trace in self._traces:
            trace.close()
        self._context.output_tokens = self.usage.completion_tokens

    async def steps(self) -> AsyncIterator[list[Delta]]:
        """Submit the requests and yield what each engine step adds, until every choice has ended.

        Raises:
            ApiError: the engine does not take a request, or fails on one.
        """
        self._submit()
        if len(self._streams) == 1:
            try:
                async for outputs in self._streams[0]:
                    yield self._advance(0, outputs)
            except OctavoError as error:
                raise self._translated(0, error) from error
        else:
            async for position, item in self._merged():
                if isinstance(item, Exception):
                    raise self._translated(position, item) from item
                yield self._advance(position, item)
        if sum(choice.finished for choice in self._choices.values()) < self.num_choices:
            raise errors.internal("The engine ended a request before it was finished.")

    def _submit(self) -> None:
        for position, request in enumerate(self._requests):
            self._traces.append(Trace(self._metrics, self.model.name, request, self._context.started))
            try:
                self._streams.append(self.model.engine.submit(request))
            except EngineUnavailable as error:
                raise self._translated(position, error) from error

    def _translated(self, position: int, error: Exception) -> Exception:
        """An engine's error as one of the API, counted."""
        trace = self._traces[position]
        match error:
            case EngineUnavailable():
                trace.reject("unavailable")
                if error.retry_after is None:
                    return errors.failed(f"{error}.")
                return errors.unavailable(f"{error}.", error.retry_after)
            case RequestRefused():
                trace.reject(error.kind)
                if error.kind is Refusal.OVERLOADED:
                    return errors.overloaded(f"The server is overloaded: {error.message}.", error.retry_after)
                if error.kind is Refusal.TOO_LONG:
                    return errors.context_length_exceeded(self.model.context_length, f"{error.message}.")
                return errors.invalid(f"{error.message}.")
            case EngineFailed():
                trace.fail()
                return errors.internal(f"The engine failed: {error}.")
        return error

    async def _merged(self) -> AsyncIterator[tuple[int, list[Output] | Exception]]:
        """What the prompts' streams bring, with the prompt's position, in the order of arrival."""
        arrived: asyncio.Queue[tuple[int, list[Output] | Exception | None]] = asyncio.Queue()

        async def pump(position: int) -> None:
            try:
                async for outputs in self._streams[position]:
                    arrived.put_nowait((position, outputs))
                arrived.put_nowait((position, None))
            except Exception as error:
                arrived.put_nowait((position, error))

        self._pumps = [asyncio.create_task(pump(position)) for position in range(len(self._streams))]
        live = len(self._streams)
        while live:
            position, item = await arrived.get()
            if item is None:
                live -= 1
            else:
                yield position, item

    def _advance(self, position: int, outputs: list[Output]) -> list[Delta]:
        """Turn one step's outputs for one prompt into deltas."""
        now = time.perf_counter()
        trace = self._traces[position]
        deltas = []
        for output in outputs:
            if output.prompt_logprobs is not None:
                self.prompt_logprobs[position] = output.prompt_logprobs
            if output.index == 0 and output.cached_tokens is not None:
                self._cached_tokens[position] = output.cached_tokens
            number = position * self._width + output.index
            choice = self._choices.get(number)
            if choice is None:
                prompt = self.prompts[position]
                choice = self._choices[number] = Choice(number, self.model.tokenizer, prompt, self._options)
                if self._options.echo:
                    deltas.append(choice.begin(self.prompt_logprobs[position]))
            if choice.finished:  # by a stop string; the engine had not heard of it yet
                continue
            delta = choice.push(output)
            deltas.append(delta)
            trace.step(output, len(delta.token_ids), now)
            if delta.finish_reason is not None:
                if output.finish_reason is None:
                    self._streams[position].abort(output.index)
                trace.finish(output.index, delta.finish_reason, choice.tokens, now)
        return deltas
