"""What frontends have asked a hosted model's process for, from its arrival until it was computed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.hosting.batcher import Batch, Batcher
from octavo.hosting.batching import Batching
from octavo.hosting.computation import Answer, Computation, Task
from octavo.hosting.endpoint import Endpoint, Peer
from octavo.hosting.errors import Code, InferenceError, forget_frames
from octavo.hosting.info import HostedInfo
from octavo.hosting.lanes import SequenceBatch, Turn
from octavo.hosting.pace import Cost
from octavo.hosting.queue import Waiting
from octavo.hosting.sequences import Sequences
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Call, Cancel, Details, Failed, Infer, Output, Pace, Reply, Request, Timing, Unknown

PACE_CHANGE = 0.2
"""Frontends hear of what a batch costs when it has changed by so much of it."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request that a frontend waits for.

    Attributes:
        message: the request, without its bytes. left: whether nobody waits for it any more.
    """

    peer: Peer
    message: Infer | Call
    task: Task
    left: bool = False

    @property
    def number(self) -> int:
        """The frontend's."""
        return self.message.number

    @property
    def within(self) -> tuple[str, ...]:
        """The processes that go on only when it is computed, as far as that is known."""
        details = self.message.details if isinstance(self.message, Infer) else None
        return () if details is None else details.within

    def end(self) -> None:
        """It was computed, or nobody waits for it: what it has is not needed any more."""
        self.task.content = None


class Intake:
    """Receives, and makes batches. One thread at a time uses it.

    Args:
        reader: makes tasks of requests.
        at_once: batches that may be computed at the same time.
    """

    def __init__(self, endpoint: Endpoint, reader: Computation, info: HostedInfo, at_once: int) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._batching = info.queue
        self._sequences: Sequences[Asked] | None = None
        if info.sequencing is not None:
            self._sequences = Sequences(info.sequencing, info.name, at_once)
        self._batcher: Batcher[Asked] = Batcher(self._bounds(at_once), at_once)
        self._asked: dict[int, Waiting[Asked]] = {}
        self._told = Pace(0.0, 0.0)

    def _bounds(self, at_once: int) -> Batching:
        """What is computed next has still to be taken out of the queue; each frontend knows what is computed, and does
        not count it."""
        return self._batching.with_room(at_once * self._batching.max_batch_size)

    def resize(self, at_once: int) -> None:
        """So many batches may be computed at the same time from now on."""
        self._batcher.resize(self._bounds(at_once), at_once)
        if self._sequences is not None:
            self._sequences.resize(at_once, time.monotonic())

    @property
    def at_rest(self) -> bool:
        """Whether nothing has been asked for that is still to come, and frontends have got what came before."""
        if self._asked or (self._sequences is not None and self._sequences.goes_on):
            return False
        return all(peer.at_rest for peer in self._endpoint.peers.copy())

    def receive(self, timeout: float | None) -> list[Asked]:
        """Take what frontends send. Returns what is computed already, and nobody waits for any more."""
        left: list[Asked] = []
        for peer, request, data in self._endpoint.receive(timeout):
            match request:
                case Infer() | Call():
                    self._add(peer, request, data)
                case Cancel():
                    left += self._cancel(request.number)
                case None:
                    left += self._leave(peer)
                case _:
                    self._hear(peer, request, data)
        return left

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._batcher and not self._sequences

    def give_back(self) -> None:
        """Tell frontends what memory of theirs is not used any more. Any thread may do so."""
        for peer in self._endpoint.peers.copy():  # which another one changes
            peer.give_back()

    def take(self) -> Batch[Asked] | float:
        """The next batch. If there is none now: the seconds after which to ask again, if nothing comes before."""
        now = time.monotonic()
        if self._sequences is not None:
            return self._take_of_sequences(self._sequences, now)
        for expired in self._batcher.expire(now):
            self._refuse(expired.request, InferenceError("Request timeout expired", Code.UNAVAILABLE))
        found = self._batcher.take(now)
        if isinstance(found, Batch):
            return found
        return max(min(found, self._batcher.next_deadline) - now, 0.0)

    def look(self) -> Sequence[Waiting[Asked]] | float:
        """What `take` would take now, or the seconds after which to ask again. Of sequences it is not known which."""
        now = time.monotonic()
        sequences, batcher = self._sequences, self._batcher
        if sequences is not None:
            due = sequences.due(now)
            for turn, error in sequences.refused(now):
                self._refuse(turn.request, error)
            return () if due == -math.inf else max(min(due, sequences.next_deadline) - now, 0.0)
        for expired in batcher.expire(now):
            self._refuse(expired.request, InferenceError("Request timeout expired", Code.UNAVAILABLE))
        found = batcher.take(now, looks=True)
        return found.requests if isinstance(found, Batch) else max(min(found, batcher.next_deadline) - now, 0.0)

    def refuse(self, waiting: Waiting[Asked], error: InferenceError) -> None:
        """Compute something not that waits."""
        self._batcher.cancel(waiting)
        self._refuse(waiting.request, error)

    @property
    def patience(self) -> float:
        """Seconds for which whatever waits may wait: infinitely many if none of it says how many."""
        waiting = self._batcher if self._sequences is None else self._sequences
        return max(waiting.next_deadline - time.monotonic(), 0.0)

    def _take_of_sequences(self, sequences: Sequences[Asked], now: float) -> Batch[Asked] | float:
        found = sequences.take(now)
        for turn, error in sequences.refused(now):
            self._refuse(turn.request, error)
        if not isinstance(found, SequenceBatch):
            return max(min(found, sequences.next_deadline) - now, 0.0)
        for turn, place in zip(found.turns, found.places, strict=True):
            turn.request.task.turn, turn.request.task.place = turn, place
        return found

    def _refuse(self, asked: Asked, error: InferenceError) -> None:
        """One that waits is not computed."""
        del self._asked[asked.number]
        asked.peer.send(failed(asked.number, error))
        asked.end()

    def note_done(self, batch: Batch[Asked], seconds: float) -> None:
        """A batch was computed, in so many seconds, whatever came of it."""
        for waiting in batch.requests:
            self._asked.pop(waiting.request.number, None)
        if isinstance(batch, SequenceBatch):
            assert self._sequences is not None
            if self._sequences.note_done(batch, seconds):
                self._tell_pace(self._sequences.cost)
        elif self._batcher.note_done(batch, seconds):
            self._tell_pace(self._batcher.cost)

    def _tell_pace(self, cost: Cost) -> None:
        told = self._told
        if abs(cost.per_batch - told.per_batch) > PACE_CHANGE * told.per_batch or (
            abs(cost.per_item - told.per_item) > PACE_CHANGE * told.per_item
        ):
            self._told = Pace(cost.per_batch, cost.per_item)
            for peer in tuple(self._endpoint.peers):  # another thread may receive
                peer.send(self._told)

    def _add(self, peer: Peer, message: Infer | Call, data: memoryview) -> None:
        if self._is_elsewhere(message):
            peer.send(Unknown(message.number))
            return
        try:
            task = self._reader.read(message, data)
            asked = Asked(peer, message, task)
            if self._sequences is not None:
                self._asked[message.number] = self._push(self._sequences, asked, message)
                return
            self._asked[message.number] = self._batcher.push(
                asked,
                items=task.items,
                kind=task.kind,
                now=message.arrived,  # and not now: this process may have been busy
                priority=message.priority,
                timeout=message.timeout,
            )
        except InferenceError as error:
            peer.send(failed(message.number, error))

    def _is_elsewhere(self, message: Infer | Call) -> bool:
        """Whether a request is only for a process that knows its sequence, and this one does not."""
        details = message.details if isinstance(message, Infer) else None
        if details is None or not details.known or self._sequences is None:
            return False
        return not self._sequences.knows(details.sequence)

    def _push(self, sequences: Sequences[Asked], asked: Asked, message: Infer | Call) -> Waiting[Asked]:
        assert isinstance(message, Infer), "models of sequences take tensors"
        details = message.details or Details()
        task = asked.task
        return sequences.push(
            asked,
            sequence=details.sequence,
            flags=details.flags,
            items=task.items,
            kind=task.kind,
            now=message.arrived,
            timeout=message.timeout,
        )

    def _hear(self, peer: Peer, message: Request, data: memoryview) -> None:
        """Something that is neither a request nor its end."""

    def _leave(self, peer: Peer) -> list[Asked]:
        """A frontend is gone."""
        asked = [each.request.number for each in self._asked.values() if each.request.peer is peer]
        return [each for number in asked for each in self._cancel(number)]

    def _cancel(self, number: int) -> list[Asked]:
        waiting = self._asked.get(number)
        if waiting is None:
            return []
        asked = waiting.request
        asked.left = True
        if self._sequences is not None and isinstance(waiting, Turn):
            waits = self._sequences.cancel(waiting)
        else:
            waits = self._batcher.cancel(waiting)
        if waits:
            del self._asked[number]
            asked.end()
            return []
        return [asked]


def send_answers(batch: Batch[Asked], answers: Sequence[Answer | InferenceError], began: float, seconds: float) -> None:
    """Tell everybody what came of a batch, each frontend all at once."""
    replies: dict[Peer, list[tuple[Reply, Sequence[Buffer]]]] = {}
    lead = True
    for waiting, answer in zip(batch.requests, answers, strict=True):
        asked, timing = waiting.request, timing_of(waiting, began, seconds, batch.items, lead=lead)
        lead = False
        own = replies.setdefault(asked.peer, [])
        if isinstance(answer, InferenceError):
            own.append((failed(asked.number, answer, timing), ()))
        else:
            output = Output(asked.number, answer.parts, answer.media_type, True, timing, answer.parameters)
            own.append((output, answer.buffers))
    for peer, own in replies.items():
        peer.send_all(own)


def timing_of(waiting: Waiting[Asked], began: float, seconds: float, items: int, *, lead: bool) -> Timing:
    """How a request was computed."""
    return Timing(int((began - waiting.arrived) * 1e9), int(seconds * 1e9), items, lead)


def failed(number: int, error: InferenceError, timing: Timing | None = None) -> Failed:
    """An error as it is sent. It lets go of where it was raised."""
    forget_frames(error)
    return Failed(number, error.code.value, str(error), error.retry_after, error.field, timing)


def wait_of(seconds: float) -> float | None:
    """For `Intake.receive`."""
    return None if seconds == math.inf else seconds
