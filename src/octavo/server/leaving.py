"""Work that a request does itself, in the server's task for it, and that is given up when the client leaves.

`octavo.server.reply` does the same with two tasks more for each request, which is too much for the shortest ones.
"""

import asyncio

from starlette.types import Receive, Scope

from octavo.server.errors import ApiError, unavailable
from octavo.server.reply import InFlight, disconnected
from octavo.server.request_context import CLIENT_GONE, LEAVING_KEY, RequestContext


class ClientGone(Exception):
    """The client left: nobody is to be answered."""


class Presence:
    """As long as it is entered, the task that entered it is cancelled when the client leaves or the server ends.

    The body of the request must have been read before.

    Raises on leaving it:
        ClientGone, ApiError: 503, in place of that cancellation.
    """

    __slots__ = ("_gone", "_in_flight", "_leaving", "_receive", "_scope", "_task", "_watch")

    def __init__(self, in_flight: InFlight, scope: Scope, receive: Receive) -> None:
        self._in_flight = in_flight
        self._scope = scope
        self._receive = receive
        self._leaving = scope.get(LEAVING_KEY)
        self._watch: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._in_flight.join(task)
        if self._leaving is None:  # another server than ours
            self._watch = asyncio.create_task(self._watch_for_leaving())
        else:
            self._leaving.add(self._leave)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._in_flight.leave(self._task)
        if self._watch is not None:
            self._watch.cancel()
        elif self._leaving is not None:
            self._leaving.discard(self._leave)
        if kind is asyncio.CancelledError:
            if self._gone:
                self._task.uncancel()
                RequestContext.of(self._scope).status = CLIENT_GONE
                raise ClientGone
            if self._in_flight.draining:
                self._task.uncancel()
                raise shutting_down()

    def _leave(self) -> None:
        self._gone = True
        self._task.cancel()

    async def _watch_for_leaving(self) -> None:
        await disconnected(self._receive)
        self._leave()


def shutting_down() -> ApiError:
    """503."""
    return unavailable("The server is shutting down.", retry_after=1.0)
