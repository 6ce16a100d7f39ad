"""The events of responses in background: whoever follows one may come late, leave, and go on where it was."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

KEPT_BYTES = 32 << 20
"""Of events of responses that have ended, together."""

Key = tuple[str, str]
"""A tenant, and the id of its response."""


class Recording:
    """The events of one response, in order: an event's number is its place.

    Attributes:
        size: bytes so far. ended: whether there will be no more.
    """

    def __init__(self) -> None:
        self.size = 0
        self.ended = False
        self._events: list[bytes] = []
        self._changed = asyncio.Event()

    def add(self, events: bytes) -> None:
        """Some more, whole ones."""
        self._events += [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]
        self.size += len(events)
        self._tell()

    def end(self) -> None:
        """Those were all."""
        self.ended = True
        self._tell()

    async def play(self, first: int) -> AsyncIterator[bytes]:
        """The events from one on, as they come, until the last."""
        while True:
            changed, ended = self._changed, self.ended
            if first < len(self._events):
                events = self._events[first:]
                first += len(events)
                yield b"".join(events)
            elif ended:
                return
            else:
                await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Recordings:
    """Those of a server's responses. Of those that have ended the oldest go first, when all together are too large."""

    def __init__(self) -> None:
        self._live: dict[Key, Recording] = {}
        self._ended: OrderedDict[Key, Recording] = OrderedDict()
        self._size = 0

    def begin(self, key: Key) -> Recording:
        """A response's recording."""
        recording = self._live[key] = Recording()
        return recording

    def get(self, key: Key) -> Recording | None:
        """What is there of a response, if it is."""
        return self._live.get(key) or self._ended.get(key)

    def end(self, key: Key) -> None:
        """No more is to come of a response."""
        recording = self._live.pop(key)
        recording.end()
        self._ended[key] = recording
        self._size += recording.size
        while self._size > KEPT_BYTES:
            self._size -= self._ended.popitem(last=False)[1].size

    def drop(self, key: Key) -> None:
        """Nobody may follow a response any more, who does not yet."""
        if (recording := self._ended.pop(key, None)) is not None:
            self._size -= recording.size
