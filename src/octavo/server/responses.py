"""OpenAI's Responses API: responses are made, kept, gone on with, asked for again and removed."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.server.answer import Parse, begin, prepare_request
from octavo.server.background import Background
from octavo.server.body import INLINE_BYTES, JsonRoute
from octavo.server.context import Server
from octavo.server.count_tokens import length_of
from octavo.server.dialects.responses import ResponseWriter, generation_request, new_response
from octavo.server.errors import ERROR_RESPONSES, ApiError, internal, invalid, unavailable
from octavo.server.models import json_response
from octavo.server.offload import off_loop
from octavo.server.reply import EventStream, Reply
from octavo.server.request_context import RequestContext
from octavo.server.response_store import NotStored, StoredResponse, StoreError, StoreFull
from octavo.server.schema.response_items import Items
from octavo.server.schema.responses import ResponsesRequest

log = logging.getLogger("octavo.server")

P = ParamSpec("P")
R = TypeVar("R")

MAX_REFERENCES = 1024
"""Items of a request that are named and not sent."""

STALE_SECONDS = 30.0
"""After which nobody works any more on a response that says nothing: its process was killed."""


def response_routes(server: Server) -> APIRouter:
    """The routes below /v1/responses."""
    router = APIRouter(prefix="/v1/responses", route_class=JsonRoute, tags=["OpenAI"], responses=ERROR_RESPONSES)
    responses = Responses(server)

    @router.post("", name="Responses", summary="Responses")
    async def create(request: Request, body: ResponsesRequest) -> Response:
        """Answer a conversation of items. With `stream` the answer comes as typed server-sent events."""
        return await responses.create(request, body)

    @router.post("/input_tokens")
    async def count_input_tokens(request: Request, body: ResponsesRequest) -> Response:
        """The tokens of the prompt that a response would answer; nothing is generated. The request is checked as it is
        there, but the prompt may be longer than the model has room for."""
        counted = await responses.count(request, body)
        return json_response({"object": "response.input_tokens", "input_tokens": counted})

    @router.get("/{response_id}")
    async def retrieve(
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int, Query(ge=-1)] = -1,
    ) -> Response:
        """A stored response. With `stream` the events of one that was made with `background` and `stream`, from the one
        after number `starting_after` on."""
        stored = await responses.get(_tenant(request), response_id)
        return responses.follow(stored, starting_after + 1) if stream else _json(stored.response)

    @router.delete("/{response_id}")
    async def delete(request: Request, response_id: str) -> Response:
        """Remove a stored response. One that is being worked on is cancelled."""
        await responses.delete(_tenant(request), response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @router.post("/{response_id}/cancel")
    async def cancel(request: Request, response_id: str) -> Response:
        """End a response in background. One that has ended stays as it is."""
        return _json((await responses.cancel(_tenant(request), response_id)).response)

    @router.get("/{response_id}/input_items")
    async def input_items(
        request: Request,
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """The items that a response answers, without those of earlier responses."""
        stored = await responses.get(_tenant(request), response_id)
        with _store_errors():
            items = await off_loop(stored.input_items)
        return json_response(_page(items if order == "asc" else items[::-1], after, limit))

    return router


def _tenant(request: Request) -> str:
    return RequestContext.of(request.scope).tenant


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json")


def _all_items(responses: Sequence[StoredResponse]) -> Items:
    return [item for each in responses for item in each.items()]


def _array(items: Items) -> bytes:
    """Items as JSON, one by one: none of them holds other threads up for long."""
    return b"[%b]" % b",".join([orjson.dumps(item) for item in items])


def _page(items: Items, after: str | None, limit: int) -> dict[str, Any]:
    if after is not None:
        place = next((number for number, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise invalid(f"'after' is {after[:100]!r}, which is none of the items.", "after")
        items = items[place + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(items) > limit}


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except NotStored as error:
        raise ApiError(404, str(error)) from error
    except StoreError as error:
        raise unavailable(str(error)) from error


def _changed(stored: StoredResponse, **members: Any) -> StoredResponse:
    """A response on which nobody works any more."""
    return replace(stored, response=orjson.dumps(stored.parsed() | members), beat=None)


async def _call(size: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Do something with so many bytes: in a thread, unless they are so few that it would only delay it."""
    return function(*args, **kwargs) if size <= INLINE_BYTES else await off_loop(function, *args, **kwargs)


class _Asked(NamedTuple):
    """A request together with what it goes on with.

    Attributes:
        new: its own items. size: bytes of all that the prompt is made of. parse: see `begin`.
    """

    new: Items
    size: int
    parse: Parse


class Responses:
    """What the routes do."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.responses
        self._background = Background(server)

    async def create(self, http: Request, body: ResponsesRequest) -> Response:
        """A new response."""
        asked = await self._asked(http, body)
        new, size = asked.new, asked.size
        prepared, generation = await begin(self._server, http, asked.parse, size=size)
        writer = ResponseWriter(await _call(size, new_response, body, prepared), generation, body.logprobs_wanted)
        tenant = _tenant(http)
        begun = StoredResponse(
            tenant=tenant,
            id=writer.id,
            previous=body.previous_response_id,
            response=b"",
            input=await _call(size, _array, new) if body.store else b"",
            created=time.time(),
            item_ids=[item["id"] for item in new],
        )
        if body.background:
            with _store_errors():
                queued = await self._background.begin(generation, writer, begun, streamed=body.stream)
            return (self._background.follow(tenant, writer.id, 0) if body.stream else None) or _json(queued)

        async def keep() -> bytes:
            response = orjson.dumps(writer.response)
            if body.store:
                try:
                    await self._store.add(begun.at(response, writer.item_ids))
                except StoreError as error:  # the answer is there, and goes to the client all the same
                    log.error("response %s is not stored: %s", writer.id, error)
            return response

        async def work(events: EventStream) -> bytes:
            try:
                with generation:
                    generation.submit()
                    if body.stream:
                        events.keep_alive(generation.accepted)
                        writer.begin()
                    async for deltas in generation.steps():
                        for delta in deltas:
                            writer.add(delta)
                        if data := writer.flush():
                            await events.write(data)
            except Exception as error:
                if events.started:
                    writer.fail(error if isinstance(error, ApiError) else internal())
                    await keep()
                raise
            response = await keep()
            return writer.end() if body.stream else response

        return Reply(
            work,
            writer,
            self._server.in_flight,
            streamed=body.stream,
            ping_seconds=self._server.settings.sse_keep_alive_interval,
        )

    async def get(self, tenant: str, id: str) -> StoredResponse:  # noqa: A002
        """A stored response. Raises ApiError: 404, 503."""
        with _store_errors():
            stored = await self._store.get(tenant, id)
            if stored.beat is None or time.time() - stored.beat < STALE_SECONDS:
                return stored
            error = {"code": "server_error", "message": "The server that worked on this response was stopped."}
            await self._store.replace(_changed(stored, status="failed", error=error))
            return await self._store.get(tenant, id)

    async def delete(self, tenant: str, id: str) -> None:  # noqa: A002
        """Remove a stored response. Raises ApiError: 404, 503."""
        with _store_errors():
            await self._store.delete(tenant, id)
        self._background.forget(tenant, id)

    def follow(self, stored: StoredResponse, first: int) -> Response:
        """The events of a response from one on. Raises ApiError: 400: nobody has them."""
        reply = self._background.follow(stored.tenant, stored.id, first)
        if reply is None:
            message = (
                "The events of this response are not there: only those made with 'background' and 'stream' have them, "
                "for some time; ask for it without 'stream'."
            )
            raise invalid(message, "stream")
        return reply

    async def cancel(self, tenant: str, id: str) -> StoredResponse:  # noqa: A002
        """End a response in background. Raises ApiError: 400 for one that is not, 404, 503."""
        stored = await self.get(tenant, id)
        with _store_errors():
            if not stored.parsed()["background"]:
                raise invalid("Only a response that was made with 'background' can be cancelled.", "response_id")
            if stored.beat is None:
                return stored
            await self._background.cancel(tenant, id)
            # What another process works on, which hears of it there. It changes nothing that has ended.
            await self._store.replace(_changed(stored, status="cancelled"))
            return await self._store.get(tenant, id)

    async def count(self, http: Request, body: ResponsesRequest) -> int:
        """The tokens of a request's prompt. Raises ApiError, InvalidRequest: it could not be answered."""
        asked = await self._asked(http, body)
        context = RequestContext.of(http.scope)
        try:
            prepared = await prepare_request(self._server, asked.parse, context, size=asked.size)
        except InvalidRequest as error:
            if error.context_length is None:
                raise
            model = self._server.model(body.model)
            return await off_loop(lambda: length_of(model, asked.parse().prompt))
        return len(prepared.prompts[0].token_ids)

    # --- what a request goes on with

    async def _asked(self, http: Request, body: ResponsesRequest) -> _Asked:
        """What a request asks for. Raises ApiError: 400, 503."""
        body.check()
        tenant = _tenant(http)
        earlier = await self._conversation(tenant, body.previous_response_id)
        new = await self._with_referenced(tenant, body.input)
        size = len(await http.body()) + sum(each.size for each in earlier)
        with _store_errors():
            items = await _call(size, _all_items, earlier)
        return _Asked(new, size, partial(generation_request, body, items, new))

    async def _conversation(self, tenant: str, previous: str | None) -> list[StoredResponse]:
        """The responses that a request goes on with. Raises ApiError: 400, 503."""
        if previous is None:
            return []
        field, code = "previous_response_id", "previous_response_not_found"
        try:
            found = await self._store.conversation(tenant, previous)
        except NotStored as error:
            message = f"Previous response with id '{previous}' not found."
            if error.id != previous:
                message = f"Response '{previous}' goes on with '{error.id}', which is not stored any more."
            raise invalid(message, field, code) from error
        except StoreFull as error:
            raise invalid(str(error), field) from error
        except StoreError as error:
            raise unavailable(str(error)) from error
        if found[-1].beat is not None:
            raise invalid(f"Response '{previous}' is still being worked on.", field)
        return found

    async def _with_referenced(self, tenant: str, items: Items) -> Items:
        """The items with those that are only named put in their places. Raises ApiError: 400, 503."""
        places = [number for number, item in enumerate(items) if item["type"] == "item_reference"]
        if not places:
            return items
        if len(places) > MAX_REFERENCES:
            raise invalid(f"'input' may have at most {MAX_REFERENCES} item references, not {len(places)}.", "input")
        with _store_errors():
            found = await self._store.items(tenant, [items[number]["id"] for number in places])
        for number in places:
            if (name := items[number]["id"]) not in found:
                message = f"Item with id '{name}' not found; items of responses that were not stored must be sent."
                raise invalid(message, f"input[{number}].id")
        return [found[item["id"]] if item["type"] == "item_reference" else item for item in items]
