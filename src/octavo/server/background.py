"""Responses that are worked out while nobody need wait: for the store, and for whoever follows their events."""

import asyncio
import logging
import time
from typing import Any

import orjson

from octavo.server.context import Server
from octavo.server.dialects.dialect import ErrorWriter
from octavo.server.dialects.responses import ResponseWriter
from octavo.server.errors import ApiError, internal, unavailable
from octavo.server.generation import ServedGeneration
from octavo.server.recordings import Key, Recording, Recordings
from octavo.server.reply import EventStream, Reply
from octavo.server.response_store import StoredResponse, StoreError

log = logging.getLogger("octavo.server")

BEAT_SECONDS = 1.0
"""Between two times that a response says in the store that it is worked on, and hears whether it should be: what
another process has cancelled ends so soon."""


class Background:
    """The work on a server's responses in background."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.responses
        self._tasks: dict[Key, asyncio.Task[bytes]] = {}
        self._recordings = Recordings()

    async def begin(
        self, generation: ServedGeneration, writer: ResponseWriter, begun: StoredResponse, *, streamed: bool
    ) -> bytes:
        """Have a response worked out.

        Args:
            streamed: whether its events are recorded.

        Returns:
            The response as it stands.

        Raises:
            ApiError: the server is stopping. StoreError: it has no room.
        """
        self._server.in_flight.admit()
        writer.response["status"] = "queued"
        queued = orjson.dumps(writer.response)
        await self._store.add(begun.at(queued, (), beat=time.time()))
        key = (begun.tenant, begun.id)
        use = self._server.deployments.begin()  # the request's own ends with its answer
        use.choose(generation.deployment)
        recording = self._recordings.begin(key) if streamed else None
        task = self._server.in_flight.start(self._work(generation, writer, begun, recording))
        self._tasks[key] = task

        def ended(_: asyncio.Task[bytes]) -> None:
            del self._tasks[key]
            if recording is not None:
                self._recordings.end(key)
            use.end()

        task.add_done_callback(ended)
        return queued

    def stop(self, tenant: str, id: str) -> None:  # noqa: A002
        """Work on a response no longer, if anybody does here."""
        if (task := self._tasks.get((tenant, id))) is not None:
            task.cancel()

    def forget(self, tenant: str, id: str) -> None:  # noqa: A002
        """A response was removed."""
        self.stop(tenant, id)
        self._recordings.drop((tenant, id))

    def follow(self, tenant: str, id: str, first: int) -> Reply | None:  # noqa: A002
        """The events of a response from one on, as they come; None if nobody records them here, or not any more."""
        recording = self._recordings.get((tenant, id))
        if recording is None:
            return None

        async def work(events: EventStream) -> bytes:
            events.keep_alive(_at_once)
            async for data in recording.play(first):
                await events.write(data)
            return b""

        seconds = self._server.settings.sse_keep_alive_interval
        return Reply(work, _Silent(), self._server.in_flight, streamed=True, ping_seconds=seconds)

    async def _work(
        self, generation: ServedGeneration, writer: ResponseWriter, begun: StoredResponse, recording: Recording | None
    ) -> bytes:
        own = asyncio.current_task()
        assert own is not None
        pulse = asyncio.create_task(self._beat(begun, own))
        if recording is not None:
            writer.begin()
            recording.add(writer.flush())
        try:
            with generation:
                generation.submit()
                async for deltas in generation.steps():
                    if writer.response["status"] == "queued":
                        writer.proceed()
                        await self._note(begun, writer, beat=time.time())
                    for delta in deltas:
                        writer.add(delta)
                    if recording is not None:
                        recording.add(writer.flush())
        except asyncio.CancelledError:
            # By the server's end; or by the client, and then the store knows already and takes nothing more.
            writer.fail(unavailable("The server is shutting down."))
        except ApiError as error:
            writer.fail(error)
        except Exception:
            log.exception("response %s failed", begun.id)
            writer.fail(internal())
        finally:
            pulse.cancel()
        if not await self._note(begun, writer, beat=None):
            writer.cancel()
        if recording is not None:
            recording.add(writer.end())
        return b""

    async def _note(self, begun: StoredResponse, writer: ResponseWriter, *, beat: float | None) -> bool:
        """Returns whether the response was still wanted."""
        try:
            return await self._store.replace(begun.at(orjson.dumps(writer.response), writer.item_ids, beat=beat))
        except StoreError as error:
            log.error("response %s is not stored: %s", begun.id, error)
            return True

    async def _beat(self, begun: StoredResponse, work: asyncio.Task[Any]) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                if not await self._store.beat(begun.tenant, begun.id):
                    work.cancel()
            except StoreError as error:
                log.warning("response %s: %s", begun.id, error)


async def _at_once() -> None:
    pass


class _Silent(ErrorWriter):
    """How a response went wrong is among its events: a stream of them that is broken off says nothing more."""

    def error(self, error: ApiError, request_id: str) -> bytes:
        return b""
