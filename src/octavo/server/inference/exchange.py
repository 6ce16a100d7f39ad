"""A request that is answered without the application, from the end of its head to the end of its answer."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import InferenceError
from octavo.hosting.inference import Outputs
from octavo.hosting.info import HostedInfo
from octavo.hosting.model_client import outputs_of
from octavo.hosting.pending import Pending
from octavo.server.errors import ApiError, error_body, error_message, internal
from octavo.server.inference.bodies import begin_predict
from octavo.server.inference.body import LEFT_EARLY, hold
from octavo.server.inference.http import JOINED_BYTES, Answer, CallHead, Fields, api_error, error_json
from octavo.server.inference.infer import compute, write_reply, write_small
from octavo.server.inference.routes import PREDICT, Found
from octavo.server.inference.tensors_out import ReplyWriter
from octavo.server.inference.work import begin_trace
from octavo.server.keys import ApiKey
from octavo.server.leaving import shutting_down
from octavo.server.middleware import RAW_ID_HEADERS, note
from octavo.server.request_context import CLIENT_GONE

if TYPE_CHECKING:
    from octavo.server.inference.direct import DirectWay
    from octavo.server.protocol import HttpProtocol

log = logging.getLogger("octavo.server")


class Request(NamedTuple):
    """What a head asks for, if it is answered without the application.

    Attributes:
        path: its target. found: what that names. headers: by their names. length: bytes of the body.
        key: what it was sent with, where keys are needed.
    """

    path: str
    found: Found
    headers: dict[bytes, bytes]
    length: int
    key: ApiKey | None


class Exchange:
    """A request and its answer. Stands where uvicorn has its `RequestResponseCycle`, and has what is asked of that.

    What takes no time is done within the events that it waits for, the end of the body and the model's answer; the rest
    is done by a task.

    Attributes:
        disconnected: the client has left, or been refused.
        keep_alive: whether the connection may have another request.
        message_event: "set" when `disconnected` is.
    """

    __slots__ = (
        *("_call", "_connection", "_deployment", "_info", "_path", "_pending", "_pieces", "_route"),
        *("_size", "_task", "_way", "_writer", "disconnected", "keep_alive", "response_complete", "response_started"),
    )
    waiting_for_100_continue = False
    _writer: ReplyWriter

    def __init__(
        self,
        way: "DirectWay",
        connection: "HttpProtocol",
        request: Request,
        call: CallHead,
        deployment: HostedDeployment,
        info: HostedInfo,
    ) -> None:
        self._way = way
        self._connection = connection
        self._path, self._route = request.path, request.found.route
        self._call = call
        self._deployment = deployment
        self._info = info
        self._pieces: list[bytes] = []
        self._size = 0
        self._pending: Pending | None = None
        self._task: asyncio.Task[None] | None = None
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = True
        connection.leaving.add(self.leave)

    @property
    def message_event(self) -> "Exchange":
        return self

    def set(self) -> None:
        """Look at `disconnected`."""
        if self.disconnected:
            self.leave()

    # What comes

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.response_complete:  # refused already
            return
        before = self._size
        self._size += len(piece)
        self._pieces.append(piece)
        try:
            hold(self._call, self._size, before, self._way.server.settings.max_tensor_body_bytes)
        except ApiError as error:
            self._refuse(error)

    def on_end(self) -> None:
        """All of it has come."""
        if self.response_complete:
            return
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._call.context.received_bytes = self._size
        self._way.server.in_flight.join(self)
        try:
            if self._way.server.tracer.on and self._route is not PREDICT:
                begin_trace(self._call, self._deployment)
            if self._route is PREDICT:
                self._wait(begin_predict(self._call, self._deployment, data, self._on_computed))
            else:
                self._infer(data)
        except Exception as error:
            self._fail(error)

    def _infer(self, data: bytes) -> None:
        asked = self._way.reader.read(self._call, self._deployment, self._info, data)
        if asked is None:
            self._start(self._compute(data))
        else:
            outlined, self._writer = asked
            self._wait(self._deployment.client.begin(outlined, self._on_computed))

    def _wait(self, pending: Pending) -> None:
        """For the model's answer, if it is not there yet."""
        if not pending.ended:
            self._pending = pending

    def leave(self) -> None:
        """The client has left."""
        if not self.response_complete:
            self.disconnected = True
            if not self.response_started:
                self._call.context.status = CLIENT_GONE
            if self._task is None and self._pending is None:
                self._call.context.refusal = LEFT_EARLY
            self._give_up()
            self._end()

    def cancel(self) -> None:
        """The server ends."""
        if not self.response_complete:
            self._give_up()
            self._refuse(shutting_down())

    def _give_up(self) -> None:
        """What was begun is not wanted any more."""
        if self._task is not None:
            self._task.cancel()
        if self._pending is not None:
            self._deployment.client.leave(self._pending)

    # What is answered

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._connection.loop.create_task(work)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.cancel()
        elif (error := task.exception()) is not None:
            self._fail(error)

    async def _compute(self, data: bytes) -> None:
        """Answer a body that takes time to read."""
        await self._write(await compute(self._call, self._deployment, self._info, data))

    def _on_computed(self, pending: Pending) -> None:
        try:
            output, data = pending.only()
            if self._route is PREDICT:
                answer: Answer | None = Answer((data,), output.media_type.encode())
            else:
                answer = write_small(self._call, self._writer, output, data)
            if answer is None:
                self._start(self._write_large(outputs_of(pending)))
                return
            size = sum(map(len, answer.parts))
            if size > JOINED_BYTES or self._connection.flow.write_paused:
                self._start(self._write(answer))
                return
            self._call.context.sent_bytes = size
            head = self._head(200, size, answer.content_type, answer.headers)
            self._connection.transport.write(b"".join((head, *answer.parts)))
            self._finish()
        except Exception as error:
            self._fail(error)

    async def _write_large(self, outputs: Outputs) -> None:
        await self._write(await write_reply(self._call, self._writer, outputs))

    async def _write(self, answer: Answer) -> None:
        parts, content_type, fields = answer
        flow, transport = self._connection.flow, self._connection.transport
        if flow.write_paused:
            await flow.drain()
        self._call.context.sent_bytes = size = sum(map(len, parts))
        transport.write(self._head(200, size, content_type, fields))
        for part in parts:
            transport.write(part)
            if flow.write_paused:
                await flow.drain()
        self._finish()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, InferenceError):
            self._refuse(api_error(error))
        elif isinstance(error, ApiError):
            self._refuse(error)
        else:
            log.error("POST %s failed (request %s)", self._path, self._call.context.request_id, exc_info=error)
            self._refuse(internal())

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error; or, if it is too late for that, with an end."""
        if self.response_complete:
            return
        if self.response_started or self.disconnected:
            self._connection.transport.close()
            self._end()
            return
        self._call.context.refusal = error_message(error)
        body = orjson.dumps(error_body(error)) if self._route is PREDICT else error_json(error)
        fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
        self._connection.transport.write(self._head(error.status_code, len(body), b"application/json", fields) + body)
        self._finish()

    def _head(self, status: int, size: int, content_type: bytes, fields: Fields) -> bytes:
        context = self._call.context
        context.status = status
        if context.trace is not None:
            context.trace.event("HTTP_SEND_START")
        self.response_started = True
        name = context.request_id.encode()
        return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n" % (
            STATUS_LINE[status],
            self._way.write_fields(self._connection.server_state.default_headers),
            content_type,
            size,
            written_fields(fields) if fields else b"",
            _NAMES % (name, name),
            b"" if self.keep_alive else b"connection: close\r\n",
        )

    def _finish(self) -> None:
        self._end()
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def _end(self) -> None:
        """Nothing is sent any more."""
        self.response_complete = True
        self._pending = self._task = None  # a connection that waits for the next request keeps no result
        way, context = self._way, self._call.context
        self._connection.leaving.discard(self.leave)
        way.server.in_flight.leave(self)
        context.end()
        note(context, way.server.http_metrics, "POST", self._route.path, self._path)


_NAMES = b"".join([b"%b: %%b\r\n" % each for each in RAW_ID_HEADERS])


def written_fields(fields: Fields) -> bytes:
    """Header fields as they are sent."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])
