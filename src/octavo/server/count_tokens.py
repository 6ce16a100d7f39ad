"""POST /v1/messages/count_tokens: how long a conversation is for a model."""

from fastapi import APIRouter
from starlette.responses import Response

from octavo.deployments import Deployment
from octavo.deployments.prepare import encode
from octavo.deployments.request import Conversation, RawPrompts
from octavo.server.body import JsonRoute
from octavo.server.context import Server
from octavo.server.dialects.anthropic_messages import ERROR_RESPONSES, CountTokensRequest
from octavo.server.errors import invalid
from octavo.server.models import MAX_TOKENS, json_response
from octavo.server.offload import off_loop
from octavo.text import TooManyTokens


def count_tokens_routes(server: Server) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)

    @router.post("/v1/messages/count_tokens", tags=["Anthropic"])
    async def count_tokens(body: CountTokensRequest) -> Response:
        """Count the tokens of a conversation, its tools among them."""
        return await off_loop(_counted, server.model(body.model), body)

    return router


def _counted(model: Deployment, body: CountTokensRequest) -> Response:
    if body.output_config is not None:
        body.output_config.constraint()  # an answer cannot be made for what is refused here
    return json_response({"input_tokens": length_of(model, body.conversation())})


def length_of(model: Deployment, prompt: RawPrompts | Conversation) -> int:
    """The tokens of one prompt, whether or not the model has room for them. Raises ApiError: 400."""
    try:
        [encoded] = encode(model, prompt, MAX_TOKENS)
    except TooManyTokens as error:
        message = f"{error}, more than the {MAX_TOKENS} that this route counts.".capitalize()
        raise invalid(message, prompt.field) from error
    return len(encoded.token_ids)
