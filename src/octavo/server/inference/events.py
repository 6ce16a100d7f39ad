"""Results as a stream of server-sent events: no status before the first of them, and an error after it is an event."""

import asyncio
from collections.abc import AsyncIterator

from octavo.hosting.errors import Code, InferenceError
from octavo.server.dialects.dialect import ErrorWriter
from octavo.server.errors import ApiError, error_message
from octavo.server.inference.http import Call, api_error, error_json
from octavo.server.inference.work import presence
from octavo.server.reply import STREAM_HEADERS, EventStream, escape_separators


async def send_events(call: Call, results: AsyncIterator[bytes]) -> None:
    """Send an event for each result, and end.

    Raises:
        InferenceError, ApiError, ClientGone: the request was not taken.
    """
    stream = EventStream(call.send, ErrorWriter.ping, call.server.settings.sse_keep_alive_interval)
    began = asyncio.Event()

    async def has_begun() -> None:
        await began.wait()

    stream.keep_alive(has_begun)
    try:
        with presence(call):
            async for result in results:
                await stream.write(_event(result))
                began.set()
        await stream.close(b"")
    except (InferenceError, ApiError) as error:
        said = api_error(error) if isinstance(error, InferenceError) else error
        model_failed = isinstance(error, InferenceError) and error.code is Code.INTERNAL
        if not stream.started and not model_failed:
            raise
        call.context.refusal = error_message(said)
        if stream.started:
            await stream.close(_event(error_json(said)))
        else:
            await _fail(call, said)
    finally:
        await stream.stop_pings()


async def _fail(call: Call, error: ApiError) -> None:
    """A model that fails on its first result does so in an event, as all that comes of a request; the status says it,
    too."""
    headers = STREAM_HEADERS.copy()
    await call.send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    event = escape_separators(_event(error_json(error)))
    await call.send({"type": "http.response.body", "body": event})


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
