"""Responses that are worked out while nobody need wait: for the store, and for whoever follows their events."""

import asyncio
import logging
import time
from dataclasses import dataclass

import orjson

from octavo.server.context import Server
from octavo.server.dialects.dialect import ErrorWriter
from octavo.server.dialects.response_output import head_of
from octavo.server.dialects.responses import ResponseWriter
from octavo.server.errors import ApiError, error_message, internal, unavailable
from octavo.server.generation import ServedGeneration
from octavo.server.recordings import EventsLost, Key, Recording, Recordings, RecordingsFull
from octavo.server.reply import EventStream, Reply
from octavo.server.response_store import StoredResponse, StoreError

log = logging.getLogger("octavo.server")

BEAT_SECONDS = 1.0
"""Between two times that a response says in the store that it is worked on, and hears whether it should be: what
another process has cancelled ends so soon."""

LIVE_BYTES = 256 << 20
"""Of events of responses that are worked on, together."""

LIVE_BODIES = 8
"""So many of the largest bodies these may have in any case, each of which is said four times."""

RETRY_RECORDING = 2.0
"""Seconds, when there is no room for the events of another response."""


@dataclass(slots=True)
class _Job:
    """The work on one response.

    Attributes:
        generating: has the model speak. It can be cancelled at any time.
        work: writes down how that ended.
        unwanted: whether it was the client who had it cancelled.
    """

    generating: asyncio.Task[bytes]
    work: asyncio.Task[bytes]
    unwanted: bool = False

    def stop(self) -> None:
        """The response is not wanted any more."""
        self.unwanted = True
        self.generating.cancel()


class Background:
    """The work on a server's responses in background."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.responses
        self._jobs: dict[Key, _Job] = {}
        self._recordings = Recordings(max(LIVE_BYTES, LIVE_BODIES * server.settings.max_body_bytes))

    async def begin(
        self, generation: ServedGeneration, writer: ResponseWriter, begun: StoredResponse, *, streamed: bool
    ) -> bytes:
        """Have a response worked out.

        Args:
            streamed: whether its events are recorded.

        Returns:
            The response as it stands.

        Raises:
            ApiError: the server is stopping, or has no room for the events. StoreError: it has none for the response.
        """
        self._server.in_flight.admit()
        writer.response["status"] = "queued"
        queued = orjson.dumps(writer.response)
        key = (begun.tenant, begun.id)
        recording = self._record(key, writer) if streamed else None
        try:
            await self._store.add(begun.at(queued, (), beat=time.time()))
        except BaseException:
            self._recordings.drop(key)
            raise
        use = self._server.deployments.begin()  # the request's own ends with its answer
        use.choose(generation.deployment)
        start = self._server.in_flight.start
        generating = start(self._generate(generation, writer, begun, recording))
        work = start(self._work(generating, writer, begun, recording), follows=True)
        self._jobs[key] = _Job(generating, work)

        def ended(_: asyncio.Task[bytes]) -> None:
            del self._jobs[key]
            if recording is not None:
                self._recordings.end(recording)
            use.end()

        work.add_done_callback(ended)
        return queued

    def _record(self, key: Key, writer: ResponseWriter) -> Recording:
        writer.begin()
        try:
            return self._recordings.begin(key, writer.flush())
        except RecordingsFull as error:
            raise unavailable(f"{error}.", RETRY_RECORDING) from error

    async def cancel(self, tenant: str, id: str) -> None:  # noqa: A002
        """Work on a response no longer, if that is done here. Returns when the store knows how far it came."""
        if (job := self._jobs.get((tenant, id))) is not None:
            job.stop()
            await asyncio.wait((job.work,))

    def forget(self, tenant: str, id: str) -> None:  # noqa: A002
        """A response was removed."""
        if (job := self._jobs.get((tenant, id))) is not None:
            job.stop()
        self._recordings.drop((tenant, id))

    def follow(self, tenant: str, id: str, first: int) -> Reply | None:  # noqa: A002
        """The events of a response from one on, as they come; None if nobody records them here, or not any more."""
        recording = self._recordings.get((tenant, id))
        if recording is None:
            return None
        follower = _Follower(first)

        async def work(stream: EventStream) -> bytes:
            stream.keep_alive(_at_once)
            try:
                async for events in recording.play(first):
                    follower.number += len(events)
                    await stream.write(b"".join(events))
            except EventsLost as error:
                raise unavailable(f"{error}.") from error
            return b""

        seconds = self._server.settings.sse_keep_alive_interval
        return Reply(work, follower, self._server.in_flight, streamed=True, ping_seconds=seconds, follows=True)

    async def _generate(
        self, generation: ServedGeneration, writer: ResponseWriter, begun: StoredResponse, recording: Recording | None
    ) -> bytes:
        with generation:
            generation.submit()
            async for deltas in generation.steps():
                if writer.response["status"] == "queued":
                    writer.proceed()
                    await self._note(begun, writer, beat=time.time())
                for delta in deltas:
                    writer.add(delta)
                if recording is not None:
                    self._recordings.add(recording, writer.flush())
        return b""

    async def _work(
        self,
        generating: asyncio.Task[bytes],
        writer: ResponseWriter,
        begun: StoredResponse,
        recording: Recording | None,
    ) -> bytes:
        pulse = asyncio.create_task(self._beat(begun))
        try:
            await asyncio.wait((generating,))
        finally:
            pulse.cancel()
        job = self._jobs[(begun.tenant, begun.id)]
        try:
            generating.result()
        except asyncio.CancelledError:
            if job.unwanted:
                writer.cancel()
            else:
                writer.fail(unavailable("The server is shutting down."))
        except ApiError as error:
            writer.fail(error)
        except Exception:
            log.exception("response %s failed", begun.id)
            writer.fail(internal())
        if not await self._note(begun, writer, beat=None):
            writer.cancel()
        if recording is not None:
            self._recordings.add(recording, writer.end())
        # The access log had its line when the client left, or had what it asked for.
        tokens = (writer.response["usage"] or {}).get("output_tokens", 0)
        log.info("response %s in background is %s: %d output tokens", begun.id, writer.response["status"], tokens)
        return b""

    async def _note(self, begun: StoredResponse, writer: ResponseWriter, *, beat: float | None) -> bool:
        """Returns whether the response was still wanted."""
        try:
            return await self._store.replace(begun.at(orjson.dumps(writer.response), writer.item_ids, beat=beat))
        except StoreError as error:
            log.error("response %s is not stored: %s", begun.id, error)
            return True

    async def _beat(self, begun: StoredResponse) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                if not await self._store.beat(begun.tenant, begun.id):
                    self._jobs[(begun.tenant, begun.id)].stop()
            except StoreError as error:
                log.warning("response %s: %s", begun.id, error)


async def _at_once() -> None:
    pass


class _Follower(ErrorWriter):
    """How a response went wrong is among its events. This says why there are no more of them.

    Attributes:
        number: of the event that is next.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def error(self, error: ApiError, request_id: str) -> bytes:
        members = {"code": error.code, "message": error_message(error), "param": error.param}
        return head_of("error", **members) + b',"sequence_number":%d}\n\n' % self.number
