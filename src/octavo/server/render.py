"""POST /v1/chat/completions/render: what a request would have the model see, with nothing generated."""

from functools import partial

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.deployments.prepare import Prepared
from octavo.server.answer import prepare_request
from octavo.server.body import JsonRoute
from octavo.server.context import Server
from octavo.server.dialects.openai_chat import ChatCompletionRequest, ChatCompletions
from octavo.server.errors import ERROR_RESPONSES
from octavo.server.models import array
from octavo.server.offload import off_loop
from octavo.server.request_context import RequestContext

SCHEMA = {
    "type": "object",
    "required": ["model", "prompt", "token_ids", "count", "max_tokens", "max_model_len"],
    "properties": {
        "model": {"type": "string"},
        "prompt": {"type": "string"},
        "token_ids": {"type": "array", "items": {"type": "integer"}},
        "count": {"type": "integer"},
        "max_tokens": {"type": "integer", "description": "Of each choice, as it would be generated."},
        "max_model_len": {"type": "integer"},
    },
}
RESPONSES = {
    200: {"description": "The prompt.", "content": {"application/json": {"schema": SCHEMA}}},
    **ERROR_RESPONSES,
}


def render_routes(server: Server) -> APIRouter:
    """The prompts of conversations."""
    router = APIRouter(route_class=JsonRoute, tags=[ChatCompletions.tag])
    dialect = ChatCompletions()

    @router.post(f"{dialect.path}/render", responses=RESPONSES)
    async def render_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        """The prompt that a chat completion would give, and its tokens. The request is checked as it is there."""
        context = RequestContext.of(request.scope)
        prepared = await prepare_request(server, partial(dialect.parse, body), context, size=len(await request.body()))
        return await off_loop(_rendered, prepared)

    return router


def _rendered(prepared: Prepared) -> Response:
    [prompt] = prepared.prompts
    ids = prompt.token_ids.tolist()
    fields = {
        "model": prepared.deployment.name,
        "prompt": prompt.text,
        "count": len(ids),
        "max_tokens": prepared.params[0].max_tokens,
        "max_model_len": prepared.deployment.context_length,
    }
    answer = b'%b,"token_ids":%b}' % (orjson.dumps(fields)[:-1], array(ids))
    return Response(answer, media_type="application/json")
