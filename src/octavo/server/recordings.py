"""The events of responses in background: whoever follows one may come late, leave, and go on where it was."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from octavo.errors import OctavoError

KEPT_BYTES = 32 << 20
"""Of events of responses that have ended, together."""

Key = tuple[str, str]
"""A tenant, and the id of its response."""


class RecordingsFull(OctavoError):
    """There is no room for another recording now."""


class EventsLost(OctavoError):
    """A response has more events than there is room for."""


class Recording:
    """The events of one response, in order: an event's number is its place.

    Attributes:
        key: of the response.
        size: bytes so far. room: bytes that it may come to as far as is known, and that count.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.size = self.room = 0
        self._ended = self._lost = False
        self._events: list[bytes] = []
        self._changed = asyncio.Event()

    def add(self, events: bytes) -> None:
        """Some more, whole ones."""
        if not self._lost:
            self._events += [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]
            self.size += len(events)
            self._tell()

    def end(self) -> None:
        """Those were all."""
        self._ended = True
        self._tell()

    def lose(self) -> None:
        """They are too many to be kept: whoever follows them is told so."""
        self._lost = True
        self._events.clear()
        self._tell()

    async def play(self, first: int) -> AsyncIterator[Sequence[bytes]]:
        """The events from one on, as they come, until the last. Raises EventsLost."""
        while True:
            changed, ended = self._changed, self._ended
            if self._lost:
                raise EventsLost(
                    "The response has more events than there is room for; it goes on, and can be asked for by its id"
                )
            if first < len(self._events):
                events = self._events[first:]
                first += len(events)
                yield events
            elif ended:
                return
            else:
                await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Recordings:
    """Those of a server's responses. Of those that have ended the oldest go first, when all together are too large.

    Args:
        live_bytes: of those that go on, together. Where they come to more, the largest is lost.
    """

    def __init__(self, live_bytes: int) -> None:
        self._live_bytes = live_bytes
        self._live: dict[Key, Recording] = {}
        self._live_room = 0
        self._ended: OrderedDict[Key, Recording] = OrderedDict()
        self._size = 0

    def begin(self, key: Key, events: bytes) -> Recording:
        """A response's recording, with its first events. What they repeat of the request will be said as often again.

        Raises RecordingsFull.
        """
        room = 2 * len(events)
        if self._live_room + room > self._live_bytes:
            raise RecordingsFull(
                f"The events of responses in background may have {self._live_bytes:,} bytes together; those being "
                f"worked on need {self._live_room:,} and this one {room:,}"
            )
        recording = self._live[key] = Recording(key)
        recording.room = room
        self._live_room += room
        recording.add(events)
        return recording

    def add(self, recording: Recording, events: bytes) -> None:
        """More events of a response."""
        recording.add(events)
        more = recording.size - recording.room
        if more <= 0 or self._live.get(recording.key) is not recording:
            return
        recording.room += more
        self._live_room += more
        while self._live_room > self._live_bytes:
            largest = max(self._live.values(), key=lambda each: each.room)
            self._remove(largest)
            largest.lose()

    def get(self, key: Key) -> Recording | None:
        """What is there of a response, if it is."""
        return self._live.get(key) or self._ended.get(key)

    def end(self, recording: Recording) -> None:
        """No more is to come of a response."""
        recording.end()
        if not self._remove(recording) or recording.size > KEPT_BYTES:
            return
        self._ended[recording.key] = recording
        self._size += recording.size
        while self._size > KEPT_BYTES:
            self._size -= self._ended.popitem(last=False)[1].size

    def drop(self, key: Key) -> None:
        """Nobody may follow a response any more, who does not yet."""
        if (live := self._live.get(key)) is not None:
            self._remove(live)
        elif (recording := self._ended.pop(key, None)) is not None:
            self._size -= recording.size

    def _remove(self, recording: Recording) -> bool:
        """Count a recording no longer among those that go on. Returns whether it was."""
        if self._live.get(recording.key) is not recording:
            return False
        del self._live[recording.key]
        self._live_room -= recording.room
        return True
