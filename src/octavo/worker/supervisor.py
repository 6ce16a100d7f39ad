"""Starting workers, watching them and starting them again. A supervisor holds no request and computes nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from octavo.errors import OctavoError
from octavo.logs import LogSettings
from octavo.worker.control import (
    NOTHING,
    Answer,
    Ask,
    Notice,
    Order,
    SetLogging,
    WorkerStatus,
    encode,
)
from octavo.worker.launcher import Launcher, Process, WorkerSpec
from octavo.worker.supervised import Worker

log = logging.getLogger(__name__)

Handler = Callable[[str, msgspec.Raw], Awaitable[msgspec.Raw]]
"""Answers what the process of that name asks for. An OctavoError becomes the answer's error."""

Subscriber = Callable[[WorkerStatus], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a worker that died is started again.

    Attributes:
        window: seconds for which a death counts.
        max_deaths: with more of them that no culprit explains, the worker is given up.
        first_delay, max_delay: seconds before a restart; from the second death on, doubled with each, up to the latter.
        grace: seconds that a process has to end when it is asked to.
    """

    window: float = 300.0
    max_deaths: int = 12
    first_delay: float = 0.1
    max_delay: float = 5.0
    grace: float = 5.0

    def delay(self, deaths: int) -> float:
        """Seconds to wait after so many deaths."""
        return 0.0 if deaths <= 1 else min(self.first_delay * 2.0 ** (deaths - 2), self.max_delay)


class Supervisor:
    """Runs workers in the event loop of the caller.

    Args:
        launcher: starts the processes; closed by `stop`.
        handler: answers what processes ask for; without one they are told that nobody does.
        logging: how processes log; without it, as they do.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        handler: Handler | None = None,
        policy: RestartPolicy | None = None,
        logging: LogSettings | None = None,
    ) -> None:
        self._launcher = launcher
        self._handler = handler
        self._policy = policy or RestartPolicy()
        self._logging = logging
        self._workers: dict[str, Worker] = {}
        self._subscribers: list[Subscriber] = []
        self._answers: set[asyncio.Task[None]] = set()

    def add(self, spec: WorkerSpec) -> None:
        """Start a worker and keep it running. Returns at once; its status tells what becomes of it."""
        if spec.name in self._workers:
            raise ValueError(f"there is a worker {spec.name!r} already")
        self._workers[spec.name] = Worker(self, spec)

    async def remove(self, name: str) -> None:
        """End a worker. What is still being computed is lost: drain first."""
        worker = self._workers[name]
        await worker.stop()
        if self._workers.get(name) is worker:  # whoever else removes it may have been quicker
            del self._workers[name]

    async def retire(self, name: str) -> None:
        """End a worker when what its process has begun has ended: nobody asks it for anything more."""
        worker = self._workers[name]
        await worker.retire()
        if self._workers.get(name) is worker:
            del self._workers[name]

    async def finish(self, name: str, drain_seconds: float) -> None:
        """Have an informed process end what is under way, so long at most, and then itself; no heir takes its place.

        Another `Stop`, sent meanwhile, makes it end at once.
        """
        await self._workers[name].finish(drain_seconds)

    async def stop(self) -> None:
        """End all workers."""
        await asyncio.gather(*(self.remove(name) for name in list(self._workers)))
        for answer in self._answers:
            answer.cancel()
        self._launcher.close()

    def status(self, name: str) -> WorkerStatus:
        """Where a worker stands. Raises KeyError."""
        return self._workers[name].status

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have every status told, those of now at once. Returns what ends it."""
        self._subscribers.append(subscriber)
        for worker in self._workers.values():
            subscriber(worker.status)
        return lambda: self._subscribers.remove(subscriber)

    async def settled(self, name: str) -> WorkerStatus:
        """Wait until a worker is ready, has failed for good or was stopped."""
        worker = self._workers[name]
        await worker.settled.wait()
        return worker.status

    async def ended(self, name: str) -> WorkerStatus:
        """Wait until a worker has failed for good or was stopped."""
        worker = self._workers[name]
        await asyncio.shield(worker.task)
        return worker.status

    def send(self, name: str, order: Order) -> None:
        """Tell a process something; it is lost when there is none at the moment."""
        self._workers[name].send(order)

    def notify(self, payload: msgspec.Raw) -> None:
        """Tell every informed process something. Heirs learn it from their configuration: see `reconfigure`."""
        for worker in self._workers.values():
            if worker.spec.informed:
                worker.send(Notice(payload))

    def set_logging(self, settings: LogSettings) -> None:
        """Have all processes log in another way: those that there are, and those that will be."""
        self._logging = settings
        for worker in self._workers.values():
            worker.send(SetLogging(settings))

    async def synced(self, name: str, payload: msgspec.Raw = NOTHING) -> msgspec.Raw:
        """Wait until an informed process has handled all that it was told before, or has ended. Returns what it says to
        a payload."""
        return await self._workers[name].synced(payload)

    def reconfigure(self, name: str, configuration: bytes) -> None:
        """Have the heirs of a worker's process start with another configuration."""
        worker = self._workers[name]
        worker.spec = replace(worker.spec, configuration=configuration)

    async def configure(self, name: str, configuration: bytes) -> None:
        """Have a worker's process go on with another configuration, as its heirs will; wait until it does, or ends."""
        await self._workers[name].configure(configuration)

    def culprit_found(self, name: str) -> None:
        """A worker's deaths are explained: they are no reason to give it up."""
        if name in self._workers:
            self._workers[name].unexplained.clear()

    # --- for the workers ------------------------------------------------------------------------------------------

    async def launch(self, spec: WorkerSpec) -> Process:
        """Start a process. Raises OSError."""
        logging = self._logging
        process = await self._launcher.launch(spec, b"" if logging is None else encode(SetLogging(logging)))
        if self._logging is not None and self._logging is not logging:  # nobody could tell it meanwhile
            process.write(encode(SetLogging(self._logging)))
        return process

    @property
    def policy(self) -> RestartPolicy:
        """When they are started again."""
        return self._policy

    def publish(self, status: WorkerStatus) -> None:
        """Tell everybody who is to know where a worker stands."""
        for subscriber in list(self._subscribers):
            subscriber(status)
        for worker in self._workers.values():
            if worker.spec.informed and worker.spec.name != status.name:
                worker.send(status)

    def inform(self, worker: Worker) -> None:
        """Tell a new process where the other workers stand."""
        for other in self._workers.values():
            if other is not worker:
                worker.send(other.status)

    def answer(self, worker: Worker, ask: Ask) -> None:
        """Work out an answer, and send it when it is there."""
        task = asyncio.create_task(self._answer(worker, ask))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, worker: Worker, ask: Ask) -> None:
        try:
            if self._handler is None:
                raise OctavoError("nothing can be asked of this server")
            answer = Answer(ask.number, await self._handler(worker.spec.name, ask.payload))
        except OctavoError as error:
            answer = Answer(ask.number, error=str(error))
        except Exception:
            log.exception("cannot answer what %s asks for", worker.spec.name)
            answer = Answer(ask.number, error="the supervisor had an error; its log says which")
        worker.send(answer)
