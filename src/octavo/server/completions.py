"""POST /v1/completions"""

import time
import uuid
from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.deployments import Deployment
from octavo.server.body import JsonRoute
from octavo.server.chunks import NULL, ChunkWriter, member
from octavo.server.context import Server
from octavo.server.errors import ERROR_RESPONSES, invalid
from octavo.server.generation import Delta, Generation, Prompt, Usage
from octavo.server.logprobs import LogprobFormat
from octavo.server.params import check, check_prompt, fit, sampling_params, text_options
from octavo.server.prompts import encode_prompts, off_loop
from octavo.server.request_context import RequestContext
from octavo.server.schema import MAX_PROMPTS, CompletionRequest

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


class CompletionFormat:
    """Writes text completions."""

    def __init__(self, body: CompletionRequest, model: Deployment, prompts: Sequence[Prompt]) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model.name
        self._prompts = prompts
        self._n = body.n
        self._with_ids = body.return_token_ids
        self._logprobs = (
            None
            if body.logprobs is None
            else LogprobFormat(model.tokenizer, body.logprobs, body.return_tokens_as_token_ids)
        )
        self._prompt_logprobs = body.prompt_logprobs
        self._writer = ChunkWriter(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
        )
        self._begun: set[int] = set()

    def chunks(self, delta: Delta, usage: Usage | None) -> bytes:
        """One event per step and choice."""
        if not (delta.text or delta.scores or delta.finish_reason or (self._with_ids and delta.token_ids)):
            return b""
        logprobs, reason, extra = NULL, NULL, b""
        if self._logprobs is not None and delta.scores:
            logprobs = orjson.dumps(self._logprobs.completion(delta.scores))
        if delta.finish_reason is not None:
            reason = orjson.dumps(delta.finish_reason)
            extra = member("stop_reason", delta.stop_reason)
        if self._with_ids:
            extra += member("token_ids", delta.token_ids)
            if delta.index not in self._begun:
                self._begun.add(delta.index)
                extra += member("prompt_token_ids", self._prompts[delta.index // self._n].token_ids)
        content = b'"text":' + orjson.dumps(delta.text)
        return self._writer.choice(
            delta.index, content, logprobs=logprobs, finish_reason=reason, usage=usage, extra=extra
        )

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage."""
        return self._writer.usage(usage)

    def body(self, choices: Sequence[Delta], generation: Generation) -> bytes:
        """The whole answer."""
        return orjson.dumps(
            {
                "id": self._id,
                "object": "text_completion",
                "created": self._created,
                "model": self._model,
                "choices": [self._choice(choice, generation) for choice in choices],
                "usage": generation.usage.as_dict(),
            }
        )

    def _choice(self, choice: Delta, generation: Generation) -> dict[str, object]:
        position = choice.index // self._n
        answer: dict[str, object] = {
            "index": choice.index,
            "text": choice.text,
            "logprobs": None if self._logprobs is None else self._logprobs.completion(choice.scores or ()),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        prompt_token_ids = self._prompts[position].token_ids
        if self._with_ids:
            answer |= {"token_ids": choice.token_ids, "prompt_token_ids": prompt_token_ids}
        prompt_logprobs = generation.prompt_logprobs[position]
        if self._prompt_logprobs is not None and prompt_logprobs is not None:
            form = LogprobFormat(generation.model.tokenizer, self._prompt_logprobs)
            answer["prompt_logprobs"] = form.prompt(prompt_token_ids, prompt_logprobs)
        return answer


def completion_routes(server: Server) -> APIRouter:
    """The text API."""
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/completions", responses=ERROR_RESPONSES)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Continue prompts. With `stream` the answer comes as server-sent events."""
        model, info = server.admit(body.model)
        check(body, info)
        if body.best_of is not None and body.best_of != body.n:
            raise invalid("'best_of' other than 'n' is not supported.", "best_of")
        if body.max_tokens == 0 and not body.echo:
            raise invalid("'max_tokens' may be 0 only together with 'echo'.", "max_tokens")
        if len(body.prompt) * body.n > MAX_PROMPTS:
            message = f"{len(body.prompt)} prompts with {body.n} choices each are more than {MAX_PROMPTS} choices."
            raise invalid(message, "n")
        prompts = await off_loop(
            RequestContext.of(request.scope).body_bytes,
            encode_prompts,
            model.tokenizer,
            body.prompt,
            body.add_special_tokens,
        )
        params = []
        for prompt in prompts:
            check_prompt(prompt, "prompt", info)
            params.append(
                sampling_params(
                    body,
                    model,
                    info,
                    seed=server.seed(),
                    max_tokens=fit(prompt, "prompt", body.max_tokens, info.max_model_len, DEFAULT_MAX_TOKENS),
                    logprobs=body.logprobs,
                    prompt_logprobs=_prompt_logprobs(body),
                )
            )
        generation = server.generation(request, model, body, prompts, params, text_options(body, echo=body.echo))
        return server.reply(body, generation, CompletionFormat(body, model, prompts))

    return router


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """How many the engine must report: for `prompt_logprobs`, for an echo, or because nothing else is wanted."""
    wanted = [body.prompt_logprobs]
    if body.echo:
        wanted.append(body.logprobs)
    if body.max_tokens == 0:
        wanted.append(0)
    return max((count for count in wanted if count is not None), default=None)
