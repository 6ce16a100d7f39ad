"""What is served: /v1/models, and each model's tokenizer under /tokenize and /detokenize."""

from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from octavo.deployments import AnyDeployment, Deployment
from octavo.deployments.prepare import encode
from octavo.deployments.request import Conversation, RawPrompts
from octavo.server.body import LONGEST_ARRAY, JsonRoute
from octavo.server.context import Server
from octavo.server.errors import ERROR_RESPONSES, invalid
from octavo.server.offload import off_loop
from octavo.server.schema.template import DetokenizeRequest, TokenizeRequest
from octavo.text import TooManyTokens
from octavo.worker.control import WorkerState

MAX_TOKENS = LONGEST_ARRAY
"""In an answer. The tokenizer's library makes them Python's all at once, and nothing else runs meanwhile."""

PIECE = 2**14


def json_response(value: object) -> Response:
    """A value as JSON."""
    return Response(orjson.dumps(value), media_type="application/json")


def model_card(model: AnyDeployment, name: str) -> dict[str, object]:
    """A model as OpenAI describes it, with vLLM's `root` (what its tokenizer can be loaded by) and `max_model_len`, and
    with Anthropic's names for the same. A model that is no language model has no length."""
    card: dict[str, object] = {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z"),
        "created": model.created,
        "owned_by": "octavo",
        "root": model.root or model.name,
        "parent": None if name == model.name else model.name,
        "permission": [],
    }
    if isinstance(model, Deployment):
        card["max_model_len"] = model.context_length
    else:  # KServe's clients look for these
        card |= {"name": model.name, "ready": model.state is WorkerState.READY}
    return card


def model_routes(server: Server) -> APIRouter:
    """The models and their tokenizers."""
    router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)

    @router.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> Response:
        """Every name a request may use."""
        cards = [model_card(model, name) for model in server.deployments for name in (model.name, *model.aliases)]
        first, last = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
        return json_response({"object": "list", "data": cards, "has_more": False, "first_id": first, "last_id": last})

    @router.get("/v1/models/{model_id:path}", tags=["OpenAI"])
    async def retrieve_model(model_id: str) -> Response:
        """One model."""
        if not model_id:
            raise HTTPException(404)
        return json_response(model_card(server.any_named(model_id), model_id))

    @router.post("/tokenize", tags=["Tokenizer"])
    async def tokenize(body: TokenizeRequest) -> Response:
        """Turn a prompt, or a conversation, into token ids."""
        return await off_loop(_tokenized, server.model(body.model), body)

    @router.post("/detokenize", tags=["Tokenizer"])
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Turn token ids into text, special tokens included."""
        return await off_loop(_detokenized, server.model(body.model), body)

    return router


def _tokenized(model: Deployment, body: TokenizeRequest) -> Response:
    special = body.add_special_tokens
    prompt: RawPrompts | Conversation
    if body.messages is not None and body.prompt is None:
        prompt = body.conversation(body.messages, special)
    elif body.prompt is not None and body.messages is None:
        prompt = RawPrompts(prompts=[body.prompt], add_special_tokens=special is None or special)
    else:
        raise invalid("Send either 'prompt' or 'messages'.", "prompt")
    try:
        [encoded] = encode(model, prompt, MAX_TOKENS)
    except TooManyTokens as error:
        message = f"{error}, more than the {MAX_TOKENS} that this route answers with.".capitalize()
        raise invalid(message, "prompt" if body.messages is None else "messages") from error
    ids = encoded.token_ids
    head = orjson.dumps({"count": len(ids), "max_model_len": model.context_length})[:-1]
    strings = array([model.tokenizer.token_text(token) for token in ids]) if body.return_token_strs else b"null"
    answer = b'%b,"tokens":%b,"token_strs":%b}' % (head, array(ids), strings)
    return Response(answer, media_type="application/json")


def array(values: Sequence[object]) -> bytes:
    """A JSON array, in pieces between which other threads can run."""
    pieces = [orjson.dumps(values[at : at + PIECE])[1:-1] for at in range(0, len(values), PIECE)]
    return b"[%b]" % b",".join(pieces)


def _detokenized(model: Deployment, body: DetokenizeRequest) -> Response:
    size = model.tokenizer.vocab_size
    wrong = next((token for token in body.tokens if token >= size), None)
    if wrong is not None:
        raise invalid(f"'tokens' has token id {wrong}; the model's ids go from 0 to {size - 1}.", "tokens")
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)})
