"""The process of a hosted model.

Started as `python -m octavo.hosting.process ADDRESS NAME` by a supervisor (`octavo.worker.supervisor`). It holds
nothing that must be saved, so that it may be ended at any time.
"""

import logging
import os
import signal
import sys
import threading

import msgspec

from octavo.errors import OctavoError
from octavo.hosting.async_server import AsyncComputation, AsyncModelServer
from octavo.hosting.endpoint import Endpoint
from octavo.hosting.loaded import Loaded
from octavo.hosting.loading import load_model
from octavo.hosting.permits import Permits
from octavo.hosting.running import Running, path_beside
from octavo.hosting.server import ModelServer
from octavo.hosting.start import HostingStart
from octavo.hosting.triton.python_backend.environment import PARAMETER, environment_of
from octavo.logs import configure_logging
from octavo.worker.control import Configure, Failed, Finish, Order, Ready, raw
from octavo.worker.files import raise_file_limit
from octavo.worker.process import Parent

try:
    import uvloop
except ImportError:  # in an environment of somebody's own; only asynchronous code needs it, which runs in none
    uvloop = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def work(parent: Parent, path: str, name: str) -> int:
    """Serve a model as the supervisor asks, under the name of its worker. Returns the exit status when it cannot be
    loaded."""
    start = msgspec.json.decode(parent.configuration, type=HostingStart)
    orders = Orders(parent)
    try:
        enter_environment(parent, start)
        parent.follow(orders.hear)
        loaded = load_model(start)
        endpoint = Endpoint(path)
        capacity = loaded.info.max_batch_size or 1
        running = Running(path_beside(path), loaded.at_once, capacity)
        permits = _permits(start, loaded, name)
        if loaded.finalize is not None:
            parent.at_end = loaded.finalize
        if loaded.load is not None:
            uvloop.run(_serve_async(parent, loaded, endpoint, running))
        else:
            server = _server(loaded, endpoint, running, permits)
            parent.report(Ready(raw(loaded.info)))
            orders.obey(loaded, server)
            server.run()
    except (OctavoError, MemoryError) as error:
        parent.report(Failed(str(error) or "there is not enough memory to load the model"))
        return 1
    return 0


def _server(loaded: Loaded, endpoint: Endpoint, running: Running, permits: Permits | None) -> ModelServer:
    if loaded.serve is not None:
        return loaded.serve(endpoint, running, permits)
    return ModelServer(loaded.computation, loaded.info, endpoint, running, loaded.at_once, permits)


def _permits(start: HostingStart, loaded: Loaded, name: str) -> Permits | None:
    """What says when the model may compute, if it needs anything that there is not any number of.

    Raises:
        ConfigError: it needs more than there is.
    """
    if not start.rate_limiter or not any(each.resources for each in loaded.limits):
        return None
    return Permits(start.rate_limiter, name, start.name, loaded.limits, loaded.all_limits)


class Orders:
    """What the supervisor wants while the process lives. It may say so before the model is loaded."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._early: list[Order] = []
        self._serving: tuple[Loaded, ModelServer] | None = None

    def hear(self, order: Order) -> None:
        """Do what is wanted, as soon as it can be done."""
        with self._lock:
            if self._serving is None:
                self._early.append(order)
            else:
                self._do(order, *self._serving)

    def obey(self, loaded: Loaded, server: ModelServer) -> None:
        """It can be done from now on."""
        with self._lock:
            self._serving = (loaded, server)
            for order in self._early:
                self._do(order, loaded, server)

    def _do(self, order: Order, loaded: Loaded, server: ModelServer) -> None:
        match order:
            case Configure(configuration) if loaded.resize is not None:
                info, instances = loaded.resize(msgspec.json.decode(configuration, type=HostingStart))
                server.resize(instances, lambda: self._parent.report(Ready(raw(info))))
            case Finish():
                server.leave(self._parent.end)


def enter_environment(parent: Parent, start: HostingStart) -> None:
    """Go on in another Python, if the model names one. Raises ConfigError: it cannot be used."""
    model = start.config.repository
    if model is None or PARAMETER not in model.config:
        return
    environment = environment_of(msgspec.json.decode(model.config), model.folder)
    if environment is not None:
        parent.become(environment.command(sys.argv[1:]), environment.variables())


async def _serve_async(parent: Parent, loaded: Loaded, endpoint: Endpoint, running: Running) -> None:
    assert loaded.load is not None
    await loaded.load()
    parent.report(Ready(raw(loaded.info)))
    computation: AsyncComputation = loaded.computation  # type: ignore[assignment]
    await AsyncModelServer(computation, loaded.info, endpoint, running, loaded.at_once).run()


def _leave_signals_to_children() -> None:
    """What is ignored here would be so in all processes that a model starts, which it could not terminate then."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.siginterrupt(signal.SIGTERM, False)

    def as_usual() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    os.register_at_fork(after_in_child=as_usual)


def main() -> int:
    """Serve a model in this process."""
    parent = Parent()
    _leave_signals_to_children()
    configure_logging(parent.logging, name=sys.argv[2])
    raise_file_limit()
    return work(parent, sys.argv[1].removeprefix("ipc://"), sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
