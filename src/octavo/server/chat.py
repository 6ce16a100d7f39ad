"""POST /v1/chat/completions"""

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
from octavo.server.generation import Delta, Generation, Usage
from octavo.server.logprobs import LogprobFormat
from octavo.server.params import check, check_prompt, fit, sampling_params, text_options
from octavo.server.prompts import encode_chat, off_loop
from octavo.server.request_context import RequestContext
from octavo.server.schema import ChatCompletionRequest


class ChatFormat:
    """Writes chat completions."""

    def __init__(self, body: ChatCompletionRequest, model: Deployment, prompt_token_ids: Sequence[int]) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model.name
        self._prompt_token_ids = prompt_token_ids
        self._with_ids = body.return_token_ids
        self._logprobs = (
            LogprobFormat(model.tokenizer, body.top_logprobs, body.return_tokens_as_token_ids)
            if body.logprobs
            else None
        )
        self._prompt_logprobs = body.prompt_logprobs
        self._writer = ChunkWriter(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
        )
        self._begun: set[int] = set()

    def chunks(self, delta: Delta, usage: Usage | None) -> bytes:
        """The role comes together with the first token, so that clients that time the first chunk time that token."""
        write = self._writer.choice
        events = b""
        if delta.index not in self._begun:
            top = member("prompt_token_ids", self._prompt_token_ids) if self._with_ids and not self._begun else b""
            self._begun.add(delta.index)
            events = write(delta.index, b'"delta":{"role":"assistant","content":""}', usage=usage, top=top)
        if delta.text or delta.scores or (self._with_ids and delta.token_ids):
            logprobs = NULL
            if self._logprobs is not None and delta.scores:
                logprobs = orjson.dumps(self._logprobs.chat(delta.scores))
            extra = member("token_ids", delta.token_ids) if self._with_ids else b""
            content = b'"delta":{"content":%b}' % orjson.dumps(delta.text)
            events += write(delta.index, content, logprobs=logprobs, usage=usage, extra=extra)
        if delta.finish_reason is not None:
            reason = orjson.dumps(delta.finish_reason)
            extra = member("stop_reason", delta.stop_reason)
            events += write(delta.index, b'"delta":{}', finish_reason=reason, usage=usage, extra=extra)
        return events

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage."""
        return self._writer.usage(usage)

    def body(self, choices: Sequence[Delta], generation: Generation) -> bytes:
        """The whole answer."""
        answer = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(choice) for choice in choices],
            "usage": generation.usage.as_dict(),
        }
        if self._with_ids:
            answer["prompt_token_ids"] = self._prompt_token_ids
        prompt_logprobs = generation.prompt_logprobs[0]
        if self._prompt_logprobs is not None and prompt_logprobs is not None:
            form = LogprobFormat(generation.model.tokenizer, self._prompt_logprobs)
            answer["prompt_logprobs"] = form.prompt(self._prompt_token_ids, prompt_logprobs)
        return orjson.dumps(answer)

    def _choice(self, choice: Delta) -> dict[str, object]:
        answer: dict[str, object] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if self._logprobs is None else self._logprobs.chat(choice.scores or ()),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._with_ids:
            answer["token_ids"] = choice.token_ids
        return answer


def chat_routes(server: Server) -> APIRouter:
    """The chat API."""
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/chat/completions", responses=ERROR_RESPONSES)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        """Reply to a conversation. With `stream` the answer comes as server-sent events."""
        model, info = server.admit(body.model)
        check(body, info)
        if body.top_logprobs and not body.logprobs:
            raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        if body.tools and body.tool_choice != "none":
            raise invalid('Tools are not supported; send tool_choice "none" or no tools.', "tools")
        prompt = await off_loop(
            RequestContext.of(request.scope).body_bytes,
            encode_chat,
            model.tokenizer,
            body.messages,
            body,
            add_special_tokens=body.add_special_tokens,
            **({"reasoning_effort": body.reasoning_effort} if body.reasoning_effort else {}),
        )
        check_prompt(prompt, "messages", info)
        wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        params = sampling_params(
            body,
            model,
            info,
            seed=server.seed(),
            max_tokens=fit(prompt, "messages", wanted, info.max_model_len),
            logprobs=body.top_logprobs if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
        )
        generation = server.generation(request, model, body, [prompt], [params], text_options(body))
        return server.reply(body, generation, ChatFormat(body, model, prompt.token_ids))

    return router
