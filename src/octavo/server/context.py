"""What the routes share: the models, the settings, and how a generation becomes a response."""

import random
import uuid
from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from octavo.deployments import Deployment
from octavo.engine.client import EngineState
from octavo.engine.config import ModelInfo
from octavo.engine.request import Request, SamplingParams
from octavo.server.errors import ApiError, failed, unavailable
from octavo.server.generation import Delta, Generation, Prompt, TextOptions, Usage, join
from octavo.server.metrics import EngineCollector, GenerationMetrics, HttpMetrics, new_registry
from octavo.server.params import SEED_BITS
from octavo.server.reply import EventStream, InFlight, Reply
from octavo.server.request_context import RequestContext
from octavo.server.schema import GenerationBody
from octavo.server.settings import ServerSettings


class Format(Protocol):
    """How one API writes a generation, streamed and whole."""

    def chunks(self, delta: Delta, usage: Usage | None) -> bytes:
        """Events for what a step added; empty if the client would learn nothing."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage, before the end of the stream."""
        ...

    def body(self, choices: Sequence[Delta], generation: Generation) -> bytes:
        """The whole answer; `choices` are all of a choice's deltas joined."""
        ...


class Server:
    """The state behind the routes."""

    def __init__(self, settings: ServerSettings, models: Sequence[Deployment]) -> None:
        self.settings = settings
        self.models = models
        self.in_flight = InFlight()
        self.registry: CollectorRegistry = new_registry()
        self.registry.register(EngineCollector(models))
        self.http_metrics = HttpMetrics(self.registry)
        self._seeds = random.Random(settings.seed)
        self._metrics = GenerationMetrics(self.registry, models)
        self._by_name = {name: model for model in models for name in (model.name, *model.aliases)}

    def seed(self) -> int:
        """The next seed for a request that has none."""
        return self._seeds.getrandbits(SEED_BITS)

    def model(self, name: str) -> Deployment:
        """The model a request names; the first one if it names none. Raises ApiError: 404."""
        return self.named(name) if name else self.models[0]

    def named(self, name: str) -> Deployment:
        """The model of that name or alias. Raises ApiError: 404."""
        model = self._by_name.get(name)
        if model is None:
            raise ApiError(404, f"The model '{name}' does not exist.", param="model", code="model_not_found")
        return model

    def admit(self, name: str) -> tuple[Deployment, ModelInfo]:
        """The model for a new generation, and what is known of it once it is loaded.

        Raises:
            ApiError: 404 if there is no such model, 503 if nothing new is begun at the moment.
        """
        self.in_flight.admit()
        model = self.model(name)
        engine = model.engine
        if engine.state is EngineState.FAILED:
            raise failed(f"The engine failed: {engine.failure}.")
        if engine.info is None:
            raise unavailable(f"The model '{model.name}' is loading.", retry_after=2.0)
        return model, engine.info

    def generation(
        self,
        http: HttpRequest,
        model: Deployment,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        options: TextOptions,
    ) -> Generation:
        """Prepare a generation; it reaches the engine when its first step is asked for."""
        context = RequestContext.of(http.scope)
        context.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        requests = [
            Request(
                # Never the client's id: two clients may choose the same.
                request_id=uuid.uuid4().hex,
                prompt_token_ids=prompt.token_ids,
                params=param,
                priority=body.priority,
                tenant=context.tenant,
                cache_salt=body.cache_salt,
            )
            for prompt, param in zip(prompts, params, strict=True)
        ]
        return Generation(model, prompts, requests, self._metrics, options, context)

    def reply(self, body: GenerationBody, generation: Generation, form: Format) -> Response:
        """The response that runs a generation."""
        options = body.stream_options

        async def stream(events: EventStream) -> None:
            with generation:
                async for deltas in generation.steps():
                    usage = generation.usage if options is not None and options.continuous_usage_stats else None
                    data = b"".join([form.chunks(delta, usage) for delta in deltas])
                    if data:
                        await events.write(data)
                if options is not None and options.include_usage:
                    await events.write(form.usage_chunk(generation.usage))

        async def collect(_: EventStream) -> bytes:
            choices: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
            with generation:
                async for deltas in generation.steps():
                    for delta in deltas:
                        choices[delta.index].append(delta)
                return form.body([join(deltas) for deltas in choices], generation)

        return Reply(stream if body.stream else collect, self.in_flight, self.settings.ping_seconds)
