"""An informed process's way to its supervisor, in its event loop: what the workers do, and what may be asked for."""

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from octavo.errors import OctavoError
from octavo.worker.control import (
    NOTHING,
    Answer,
    Ask,
    CulpritFound,
    Notice,
    Order,
    Stop,
    Sync,
    Synced,
    WorkerState,
    WorkerStatus,
)
from octavo.worker.process import Parent


class AskFailed(OctavoError):
    """The supervisor does not do what it was asked for; the message says why."""


class SupervisorLink:
    """Hears orders in the running event loop.

    Args:
        parent: the pipes.
        on_stop: the process is to end; once more, and it is to end at once.
        on_notice: something that every informed process is to know.
        on_question: says what the supervisor wants to know.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        on_stop: Callable[[Stop], None],
        on_notice: Callable[[msgspec.Raw], None],
        on_question: Callable[[msgspec.Raw], msgspec.Raw] = lambda payload: NOTHING,
    ) -> None:
        self._parent = parent
        self._on_stop, self._on_notice, self._on_question = on_stop, on_notice, on_question
        self._statuses: dict[str, WorkerStatus] = {}
        self._watchers: dict[str, Callable[[WorkerStatus], None]] = {}
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[msgspec.Raw]] = {}
        loop = asyncio.get_running_loop()
        parent.follow(lambda order: loop.call_soon_threadsafe(self._hear, order))

    def watch(self, worker: str, watcher: Callable[[WorkerStatus], None]) -> None:
        """Have one worker's statuses told, that of now at once if there is one."""
        self._watchers[worker] = watcher
        if worker in self._statuses:
            watcher(self._statuses[worker])

    def unwatch(self, worker: str) -> None:
        """Have them told no more."""
        self._watchers.pop(worker, None)

    async def ask(self, payload: msgspec.Raw) -> msgspec.Raw:
        """Ask for something and wait for what comes of it. What a payload may be is between the two programs.

        Raises:
            AskFailed: it was not done.
        """
        number = next(self._numbers)
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._parent.report(Ask(number, payload))
            return await answer
        finally:
            del self._asked[number]

    def culprit_found(self, worker: str) -> None:
        """What a worker died of was found, and will not come again."""
        self._parent.report(CulpritFound(worker))

    def _hear(self, order: Order) -> None:
        match order:
            case WorkerStatus(name=name):
                self._statuses[name] = order
                if order.state is WorkerState.STOPPED:  # for good; its name may come again with another worker
                    del self._statuses[name]
                if name in self._watchers:
                    self._watchers[name](order)
            case Answer(number, payload, error):
                asked = self._asked.get(number)
                if asked is None or asked.done():  # whoever asked has left
                    return
                if error is None:
                    asked.set_result(payload)
                else:
                    asked.set_exception(AskFailed(error))
            case Notice(payload):
                self._on_notice(payload)
            case Sync(number, payload):
                self._parent.report(Synced(number, NOTHING if payload == NOTHING else self._on_question(payload)))
            case Stop():
                self._on_stop(order)
