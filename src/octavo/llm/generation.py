"""The loop's side of an `LLM`: prepared requests through the engine."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from octavo.deployments import Deployment
from octavo.deployments.choice import Delta, join
from octavo.deployments.generation import Generation
from octavo.deployments.prepare import Prepared
from octavo.engine.config import EngineConfig
from octavo.engine.request import TokenLogprobs
from octavo.errors import OctavoError
from octavo.llm.outputs import CompletionOutput, Logprob, Logprobs, RequestOutput, StreamChunk
from octavo.llm.window import Room, Window
from octavo.text import Tokenizer


class BatchError(OctavoError):
    """Some prompts of a batch failed.

    Attributes:
        outputs: those of the others, in the prompts' order; None where a prompt failed.
        errors: position -> what went wrong with that prompt.
    """

    def __init__(self, outputs: Sequence[RequestOutput | None], errors: dict[int, OctavoError]) -> None:
        first = min(errors)
        super().__init__(f"{len(errors)} of {len(outputs)} prompts failed; prompt {first}: {errors[first]}")
        self.outputs = outputs
        self.errors = errors


class Generator:
    """Runs requests of one prompt each on a model. All of it belongs to one event loop."""

    def __init__(self, deployment: Deployment, config: EngineConfig) -> None:
        self.deployment = deployment
        # As much as runs at once, and as much again that is there when a row becomes free.
        waiting = min(config.max_num_seqs, config.max_num_queued_reqs)
        self._window = Window(config.max_num_seqs + waiting, config.max_num_queued_tokens)

    async def complete(
        self, requests: Sequence[Prepared], ended: Callable[[RequestOutput], None]
    ) -> list[RequestOutput]:
        """Run all requests; `ended` is called with each as it ends.

        Raises:
            OctavoError: the only request failed.
            BatchError: some of several failed.
        """
        outputs: list[RequestOutput | None] = [None] * len(requests)
        errors: dict[int, OctavoError] = {}

        async def complete(position: int, generation: Generation) -> None:
            try:
                outputs[position] = output = await self._complete(generation)
                ended(output)
            except OctavoError as error:
                errors[position] = error

        async with asyncio.TaskGroup() as group:
            for position, request in enumerate(requests):
                generation = Generation(request)
                room = await self._enter(generation)
                task = group.create_task(complete(position, generation))
                task.add_done_callback(partial(self._leave, room))  # even if it never began
        if errors:
            raise errors[0] if len(requests) == 1 else BatchError(outputs, errors)
        return [output for output in outputs if output is not None]

    async def stream(self, request: Prepared, put: Callable[[StreamChunk], None]) -> None:
        """Run a request; `put` is called with what every step adds. Raises OctavoError."""
        generation, tokenizer = Generation(request), self.deployment.tokenizer
        room = await self._enter(generation)
        try:
            with generation:
                generation.submit()
                async for deltas in generation.steps():
                    for delta in deltas:
                        put(_chunk(tokenizer, delta))
        finally:
            self._window.leave(room)

    async def _enter(self, generation: Generation) -> Room:
        return await self._window.enter(generation.num_choices, generation.num_choices * generation.usage.prompt_tokens)

    def _leave(self, room: Room, _: object) -> None:
        self._window.leave(room)

    async def _complete(self, generation: Generation) -> RequestOutput:
        [prompt], tokenizer = generation.prompts, self.deployment.tokenizer
        parts: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
        with generation:
            generation.submit()
            async for deltas in generation.steps():
                for delta in deltas:
                    parts[delta.index].append(delta)
        return RequestOutput(
            prompt=prompt.text,
            prompt_token_ids=list(prompt.token_ids),
            outputs=[_output(tokenizer, join(deltas)) for deltas in parts],
            usage=generation.usage,
            prompt_logprobs=_scored_prompt(tokenizer, prompt.token_ids, generation.prompt_logprobs[0]),
        )


def _chunk(tokenizer: Tokenizer, delta: Delta) -> StreamChunk:
    finish = delta.finish
    return StreamChunk(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        finish_reason=None if finish is None else finish.reason,
        stop_reason=None if finish is None else finish.stop,
        logprobs=_logprobs(tokenizer, delta),
    )


def _output(tokenizer: Tokenizer, whole: Delta) -> CompletionOutput:
    assert whole.finish is not None  # an engine that ends a choice without one has failed
    return CompletionOutput(
        index=whole.index,
        text=whole.text,
        token_ids=whole.token_ids,
        finish_reason=whole.finish.reason,
        stop_reason=whole.finish.stop,
        logprobs=_logprobs(tokenizer, whole),
    )


def _scored_prompt(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
) -> list[Logprobs | None] | None:
    if logprobs is None:
        return None
    return [None, *(_position(tokenizer, *pair) for pair in zip(token_ids[1:], logprobs, strict=True))]


def _logprobs(tokenizer: Tokenizer, delta: Delta) -> list[Logprobs] | None:
    if delta.scores is None:
        return None
    return [_position(tokenizer, score.token_id, score.logprobs) for score in delta.scores if score.logprobs]


def _position(tokenizer: Tokenizer, token: int, logprobs: TokenLogprobs) -> Logprobs:
    known = {token: Logprob(logprobs.logprob, None, tokenizer.token_text(token))}
    for rank, (other, logprob) in enumerate(zip(logprobs.top_tokens, logprobs.top_logprobs, strict=True), 1):
        known[other] = Logprob(logprob, rank, tokenizer.token_text(other))
    return known
