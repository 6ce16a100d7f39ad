"""What a client takes: how much of it, in which pieces, and when."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence, Sized

from octavo.server.http2 import frames
from octavo.server.http2.stream import Buffer, Stream

PIECE = 256 * 1024
"""Bytes of a frame at most: streams take turns."""

BURST = 2**21
"""Bytes that are handed to the system at once."""


class Peer:
    """The other end of a connection.

    Attributes:
        initial_window: bytes that it takes of a stream that begins. window: of all streams together.
        max_frame: bytes of a frame that it takes.

    Args:
        streams: those that there are.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, streams: Sized) -> None:
        self._loop = loop
        self._streams = streams
        self._later: list[bytes] = []
        self.initial_window = self.window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME
        self._write = transport.write
        self._write_all = transport.writelines
        self._paused = False
        self._waiting: list[asyncio.Future[None]] = []

    def write(self, data: bytes) -> None:
        """Send whole frames. If there are several streams, more may have to be sent in this turn of the loop, and all
        of it is sent together."""
        if self._later:
            self._later.append(data)
        elif len(self._streams) > 1:
            self._later.append(data)
            self._loop.call_soon(self.flush)
        else:
            self._write(data)

    def flush(self) -> None:
        """Send what waits for the turn's end."""
        if self._later:
            self._write(b"".join(self._later))
            self._later.clear()

    def drop(self) -> None:
        """It has gone: nothing can be sent."""
        self._later.clear()

    def take(self, stream: Stream, size: int) -> bool:
        """Whether it takes so many bytes of a stream now, in one frame. They are to be sent at once."""
        if size > self.window or size > stream.window or size > self.max_frame or self._paused:
            return False
        self.window -= size
        stream.window -= size
        return True

    def send_now(self, stream: Stream, buffers: Sequence[Buffer], before: bytes, after: bytes) -> bool:
        """Send data between other frames, if it takes all of it at once. Returns whether it does."""
        size = sum(map(len, buffers))
        if size > min(self.window, stream.window, BURST) or self._paused:
            return False
        self.flush()
        self._write_all([before, *self._framed(stream, deque([memoryview(each) for each in buffers]), size), after])
        return True

    async def send(self, stream: Stream, buffers: Sequence[Buffer], before: bytes, after: bytes) -> None:
        """The same as it is taken. Ends early if the stream is closed meanwhile."""
        data = deque([memoryview(each) for each in buffers])
        left = sum(map(len, data))
        while left:
            size = 0 if self._paused else min(self.window, stream.window, BURST, left)
            if size > 0 or before:
                self.flush()
                self._write_all([before, *self._framed(stream, data, size)])
                before, left = b"", left - max(size, 0)
            else:
                await self._wait()
                if stream.closed:
                    return
        self.write(before + after)

    def _framed(self, stream: Stream, data: deque[memoryview], size: int) -> list[Buffer]:
        """The next so many bytes of buffers, as frames."""
        framed: list[Buffer] = []
        while size > 0:
            piece = min(size, self.max_frame, PIECE)
            self.window -= piece
            stream.window -= piece
            size -= piece
            framed.append(frames.head(piece, frames.DATA, 0, stream.id))
            _move(data, piece, framed)
        return framed

    def enlarge(self, stream: Stream | None, increment: int) -> bool:
        """It takes so many bytes more, of one stream or of all together. Returns whether that is possible."""
        if stream is None:
            self.window += increment
        else:
            stream.window += increment
        self.wake()
        return (self.window if stream is None else stream.window) <= frames.MAX_WINDOW

    def set_initial_window(self, size: int, streams: Iterable[Stream]) -> bool:
        """It takes so many bytes of every stream; of those that have begun more or less than before. Returns whether
        that is possible."""
        change = size - self.initial_window
        self.initial_window = size
        for stream in streams:
            stream.window += change
        self.wake()
        return all(stream.window <= frames.MAX_WINDOW for stream in streams)

    def pause(self) -> None:
        """It takes nothing for now."""
        self._paused = True

    def resume(self) -> None:
        """It goes on."""
        self._paused = False
        self.wake()

    def wake(self) -> None:
        """Have everybody look again whether something can be sent."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    async def _wait(self) -> None:
        waits = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        await waits


def _move(data: deque[memoryview], size: int, to: list[Buffer]) -> None:
    """The first bytes of what is left of buffers, as they lie there."""
    while size:
        first = data.popleft()
        if len(first) > size:
            data.appendleft(first[size:])
            first = first[:size]
        to.append(first)
        size -= len(first)
