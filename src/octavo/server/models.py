"""What is served: /v1/models, and each model's tokenizer under /tokenize and /detokenize."""

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.deployments import Deployment
from octavo.server.body import JsonRoute
from octavo.server.context import Server
from octavo.server.errors import ERROR_RESPONSES, invalid
from octavo.server.prompts import encode_chat, encode_prompts, off_loop
from octavo.server.request_context import RequestContext
from octavo.server.schema import DetokenizeRequest, TokenizeRequest


def json_response(value: object) -> Response:
    """A value as JSON."""
    return Response(orjson.dumps(value), media_type="application/json")


def model_card(model: Deployment, name: str) -> dict[str, object]:
    """A model as OpenAI describes it, with vLLM's `root` (what its tokenizer can be loaded by) and `max_model_len`."""
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "octavo",
        "root": model.root or model.name,
        "parent": None if name == model.name else model.name,
        "max_model_len": model.context_length,
        "permission": [],
    }


def model_routes(server: Server) -> APIRouter:
    """The models and their tokenizers."""
    router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)

    @router.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> Response:
        """Every name a request may use."""
        cards = [model_card(model, name) for model in server.models for name in (model.name, *model.aliases)]
        return json_response({"object": "list", "data": cards})

    @router.get("/v1/models/{model_id:path}", tags=["OpenAI"])
    async def retrieve_model(model_id: str) -> Response:
        """One model."""
        return json_response(model_card(server.named(model_id), model_id))

    @router.post("/tokenize", tags=["Tokenizer"])
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        """Turn a prompt, or a conversation, into token ids."""
        model = server.model(body.model)
        size = RequestContext.of(request.scope).body_bytes
        special = body.add_special_tokens
        if body.messages is not None and body.prompt is None:
            prompt = await off_loop(size, encode_chat, model.tokenizer, body.messages, body, add_special_tokens=special)
        elif body.prompt is not None and body.messages is None:
            [prompt] = await off_loop(size, encode_prompts, model.tokenizer, [body.prompt], special)
        else:
            raise invalid("Send either 'prompt' or 'messages'.", "prompt")
        strings = None
        if body.return_token_strs:
            strings = [model.tokenizer.token_text(token) for token in prompt.token_ids]
        return json_response(
            {
                "count": len(prompt.token_ids),
                "max_model_len": model.context_length,
                "tokens": prompt.token_ids,
                "token_strs": strings,
            }
        )

    @router.post("/detokenize", tags=["Tokenizer"])
    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        """Turn token ids into text, special tokens included."""
        model = server.model(body.model)
        size = model.tokenizer.vocab_size
        wrong = next((token for token in body.tokens if token >= size), None)
        if wrong is not None:
            raise invalid(f"'tokens' has token id {wrong}; the model's ids go from 0 to {size - 1}.", "tokens")
        text = await off_loop(
            RequestContext.of(request.scope).body_bytes, model.tokenizer.decode, body.tokens, skip_special_tokens=False
        )
        return json_response({"prompt": text})

    return router
