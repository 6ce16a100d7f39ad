"""A request in the engine: all its choices, step by step, until each has ended or nobody wants them any more."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from octavo.deployments.choice import Choice, Delta
from octavo.deployments.prepare import Prepared
from octavo.engine.client import EngineFailed, OutputStream
from octavo.engine.request import Output, PromptLogprobs, Request
from octavo.errors import OctavoError


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request so far; a prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompts and completions together."""
        return self.prompt_tokens + self.completion_tokens


class Generation:
    """All the choices of one request. Leaving the context aborts what has not ended.

    Args:
        tenant: whose fair share it counts against.
        arrival: `time.perf_counter()` when the request came, for its timeout; None is when it is submitted.

    Attributes:
        deployment: answers. prompts: are continued.
        prompt_logprobs: of each prompt, once they are known.
    """

    def __init__(self, prepared: Prepared, *, tenant: str = "", arrival: float | None = None) -> None:
        self.deployment = prepared.deployment
        self.prompts = prepared.prompts
        self.prompt_logprobs: list[PromptLogprobs | None] = [None] * len(prepared.prompts)
        self._options = prepared.options
        self._width = prepared.request.n
        self._timeout, self._arrival = prepared.request.timeout, arrival
        self._timer: asyncio.TimerHandle | None = None
        self._requests = [
            Request(
                # Never the client's id: two clients may choose the same.
                request_id=uuid.uuid4().hex,
                prompt_token_ids=prompt.token_ids,
                params=params,
                priority=prepared.request.priority or 0,
                tenant=tenant,
                cache_salt=prepared.request.cache_salt,
            )
            for prompt, params in zip(prepared.prompts, prepared.params, strict=True)
        ]
        self._choices: dict[int, Choice] = {}
        self._cached_tokens = [0] * len(prepared.prompts)
        self._streams: list[OutputStream] = []
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def num_choices(self) -> int:
        """Choices of all prompts together."""
        return len(self.prompts) * self._width

    def prompt_of(self, choice: int) -> int:
        """Which prompt a choice continues."""
        return choice // self._width

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            sum(len(prompt.token_ids) for prompt in self.prompts),
            sum(choice.tokens for choice in self._choices.values()),
            sum(self._cached_tokens),
            sum(choice.reasoning_tokens for choice in self._choices.values()),
        )

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for pump in self._pumps:
            pump.cancel()
        for stream in self._streams:
            stream.abort()

    def submit(self) -> None:
        """Give the requests to the engine. Raises EngineUnavailable: it takes none at the moment."""
        for position, request in enumerate(self._requests):
            self.begin(request)
            try:
                self._streams.append(self.deployment.engine.submit(request))
            except OctavoError as error:
                raise self.failure(position, error) from error
        if self._timeout is not None:
            waited = 0.0 if self._arrival is None else time.perf_counter() - self._arrival
            self._timer = asyncio.get_running_loop().call_later(self._timeout - waited, self._expire)

    def _expire(self) -> None:
        for stream in self._streams:
            stream.expire()

    async def accepted(self) -> None:
        """Returns when the engine has taken all the requests: none of them will be refused any more."""
        for stream in self._streams:
            await stream.accepted.wait()

    async def steps(self) -> AsyncIterator[list[Delta]]:
        """What each engine step adds, until every choice has ended.

        Raises:
            RequestRefused: the engine does not take a request.
            EngineFailed: it fails on one.
        """
        if len(self._streams) == 1:
            try:
                async for outputs in self._streams[0]:
                    if self._options.echo:
                        async for deltas in self._echoed(0, outputs):
                            yield deltas
                    else:
                        yield self._advance(0, outputs)
            except OctavoError as error:
                raise self.failure(0, error) from error
        else:
            async for position, item in self._merged():
                if isinstance(item, OctavoError):
                    raise self.failure(position, item) from item
                if isinstance(item, Exception):
                    raise item
                async for deltas in self._echoed(position, item):
                    yield deltas
        if sum(choice.finished for choice in self._choices.values()) < self.num_choices:
            raise self.failure(0, EngineFailed("it ended a request before it was finished"))

    # --- for who counts or answers in other words -----------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """The next prompt's request goes to the engine."""

    def note(self, position: int, output: Output, delta: Delta, tokens: int) -> None:
        """An output of a prompt's request has become a delta of its choice, which now has so many tokens."""

    def failure(self, position: int, error: OctavoError) -> Exception:
        """What is raised for an engine's error on a prompt's request."""
        return error

    # --------------------------------------------------------------------------------------------------------------

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

    async def _echoed(self, position: int, outputs: list[Output]) -> AsyncIterator[list[Delta]]:
        """One step's deltas, those that begin a choice preceded by its echo if there is to be one. That comes in
        pieces, and others have their turn between them."""
        if not self._options.echo:
            yield self._advance(position, outputs)
            return
        for output in outputs:
            begun = self._number(position, output) in self._choices
            choice = self._choice(position, output)
            if not begun:
                for delta in choice.begin(self.prompt_logprobs[position]):
                    yield [delta]
                    await asyncio.sleep(0)
            yield self._advance(position, [output])

    def _advance(self, position: int, outputs: list[Output]) -> list[Delta]:
        """Turn one step's outputs for one prompt into deltas."""
        deltas = []
        for output in outputs:
            choice = self._choice(position, output)
            if choice.finished:  # by a stop string; the engine had not heard of it yet
                continue
            delta = choice.push(output)
            deltas.append(delta)
            if delta.finish is not None and output.finish_reason is None:
                self._streams[position].abort(output.index)
            self.note(position, output, delta, choice.tokens)
        return deltas

    def _number(self, position: int, output: Output) -> int:
        return position * self._width + output.index

    def _choice(self, position: int, output: Output) -> Choice:
        """The choice that an output belongs to. With its first one come things that concern the prompt."""
        number = self._number(position, output)
        choice = self._choices.get(number)
        if choice is None:
            prompt = self.prompts[position]
            choice = self._choices[number] = Choice(number, self.deployment.tokenizer, prompt, self._options)
            if output.index == 0:
                self._cached_tokens[position] = output.cached_tokens or 0
                self.prompt_logprobs[position] = output.prompt_logprobs
        return choice
