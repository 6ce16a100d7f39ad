"""The engine process: an engine at a worker's end of a channel.

Started as `python -m octavo.engine.process ADDRESS NAME` by a supervisor (`octavo.worker.supervisor`). It holds
nothing that must be saved, so that it may be ended at any time.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loader import LoadedEngine, load_engine
from octavo.engine.request import Output, RequestRefused
from octavo.engine.wire import (
    Abort,
    Accepted,
    Learn,
    Refused,
    Stats,
    StepDone,
    Submit,
    ToEngine,
    decode_for_engine,
    encode,
)
from octavo.errors import OctavoError
from octavo.logs import configure_logging
from octavo.worker.control import Failed, Loading, Ready, raw
from octavo.worker.endpoint import Endpoint, Event, Joined, Left, Message
from octavo.worker.process import Parent
from octavo.worker.thread import ThreadParent

log = logging.getLogger(__name__)

STATS_SECONDS = 0.1
"""While an engine computes, frontends hear so often where it stands."""


class EngineServer:
    """Feeds one engine from its endpoint and sends every frontend what its requests produced."""

    def __init__(self, engine: Engine, endpoint: Endpoint) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._engine.grammars.wake = endpoint.wake
        self._owners: dict[str, bytes] = {}
        self._accepted: dict[bytes, list[str]] = {}
        self._next_stats = 0.0

    def run(self, parent: Parent | ThreadParent) -> int:
        """Serve until the supervisor wants no more."""
        while not parent.stopping:
            events = self._endpoint.receive(wait=not self._engine.has_work)
            for event in events:
                self._handle(event)
            self._acknowledge()
            worked = self._engine.has_work
            if worked:
                self._send(self._engine.step())
            if events or worked:
                self._report()
        self._engine.grammars.close()
        self._endpoint.close()
        return 0

    def _handle(self, event: Event) -> None:
        match event:
            case Message(frontend, data):
                self._take(frontend, decode_for_engine(data))
            case Left(frontend):
                self._drop(frontend)
            case Joined():
                self._next_stats = 0.0

    def _take(self, frontend: bytes, message: ToEngine) -> None:
        match message:
            case Submit(request):
                try:
                    self._engine.add(request)
                    self._owners[request.request_id] = frontend
                    self._accepted.setdefault(frontend, []).append(request.request_id)
                except RequestRefused as refused:
                    answer = Refused(request.request_id, refused.kind, refused.message, refused.retry_after)
                    self._endpoint.send(frontend, encode(answer))
            case Learn(vocabulary):
                self._engine.grammars.learn(vocabulary)
            case Abort(request_id, index):
                self._engine.abort(request_id, index)
                self._forget_if_ended(request_id)

    def _acknowledge(self) -> None:
        """Tell frontends which of the requests that have just come were taken: before a step, which may be long."""
        for frontend, request_ids in self._accepted.items():
            self._endpoint.send(frontend, encode(Accepted(request_ids)))
        self._accepted.clear()

    def _drop(self, frontend: bytes) -> None:
        """Abort what a frontend asked for that is not there any more."""
        requests = [request_id for request_id, owner in self._owners.items() if owner == frontend]
        if requests:
            log.warning("a frontend is gone; aborting its %d requests", len(requests))
        for request_id in requests:
            self._engine.abort(request_id)
            self._forget_if_ended(request_id)

    def _forget_if_ended(self, request_id: str) -> None:
        if not self._engine.is_live(request_id):
            self._owners.pop(request_id, None)

    def _send(self, outputs: list[Output]) -> None:
        by_frontend: dict[bytes, list[Output]] = {}
        for output in outputs:
            by_frontend.setdefault(self._owners[output.request_id], []).append(output)
        for output in outputs:  # only now: several choices of a request may have ended in this step
            if output.finish_reason is not None:
                self._forget_if_ended(output.request_id)
        for frontend, own in by_frontend.items():
            self._endpoint.send(frontend, encode(StepDone(own)))

    def _report(self) -> None:
        """Tell all frontends where the engine stands: now and then while it computes, and when it has come to rest."""
        now = time.monotonic()
        if now < self._next_stats and self._engine.has_work:
            return
        self._next_stats = now + STATS_SECONDS
        data = encode(Stats(self._engine.stats()))
        for frontend in self._endpoint.frontends:
            self._endpoint.send(frontend, data)


def _load(config: EngineConfig, parent: Parent | ThreadParent) -> LoadedEngine:
    return load_engine(config, _in_percent(lambda done, total: parent.report(Loading(done, total))))


def _in_percent(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Progress that is passed on a hundred times at most: a model may have a hundred thousand weights."""
    shown = -1

    def note(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent > shown:
            shown = percent
            report(done, total)

    return note


def work(parent: Parent | ThreadParent, address: str) -> int:
    """Run an engine as its supervisor asks. Returns the exit status when the model cannot be loaded, and on a thread
    when it is stopped."""
    config = msgspec.json.decode(parent.configuration, type=EngineConfig)
    try:
        endpoint = Endpoint(address)
        loaded = _load(config, parent)
    except (OctavoError, MemoryError) as error:
        parent.report(Failed(str(error) or "there is not enough memory to load the model"))
        return 1
    # An engine that takes this one's place must hold as much, or requests could not be resumed.
    info = loaded.info
    heir = replace(config, kv_cache_memory_bytes=info.kv_cache_bytes, max_model_len=info.max_model_len)
    parent.report(Ready(raw(info), raw(heir)))
    return EngineServer(loaded.engine, endpoint).run(parent)


def main() -> int:
    """Run an engine in this process. Returns the exit status when the model cannot be loaded."""
    parent = Parent()
    configure_logging(parent.logging, name="engine")
    parent.follow()
    return work(parent, sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
