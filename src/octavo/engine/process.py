"""The engine process: an engine behind a ZeroMQ socket.

Started as `python -m octavo.engine.process ADDRESS` by the process that supervises it, which writes the settings as one
line of JSON to its standard input and keeps that open. When standard input ends, whoever started the engine is gone,
and the engine ends too; it holds nothing that must be saved.
"""

import logging
import os
import signal
import sys
import threading

import msgspec
import zmq

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loader import load_engine
from octavo.engine.request import Output, RequestRefused
from octavo.engine.wire import (
    Abort,
    Failed,
    Hello,
    Loading,
    Ready,
    Refused,
    StepDone,
    Submit,
    decode_for_engine,
    encode,
)
from octavo.errors import OctavoError

log = logging.getLogger(__name__)


class EngineServer:
    """Feeds one engine from its socket and sends every frontend what its requests produced."""

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        self._frontends: list[bytes] = []
        self._owners: dict[str, bytes] = {}

    def run(self, config: EngineConfig) -> int:
        """Load the model and serve until the process is ended. Returns the exit status when it cannot be loaded."""
        self._frontends.append(self._socket.recv_multipart()[0])
        try:
            loaded = load_engine(config, lambda done, total: self._broadcast(Loading(done, total)))
        except (OctavoError, MemoryError) as error:
            self._broadcast(Failed(str(error) or "there is not enough memory to load the model"))
            self._socket.close(linger=5000)
            return 1
        engine, ready = loaded.engine, Ready(loaded.info)
        self._broadcast(ready)
        while True:
            self._receive(engine, ready)
            if engine.has_work:
                self._send(engine, engine.step())

    def _receive(self, engine: Engine, ready: Ready) -> None:
        """Take every message that has arrived; wait for one when there is nothing to compute."""
        timeout = 0 if engine.has_work else -1
        while self._socket.poll(timeout):
            frontend, data = self._socket.recv_multipart()
            message = decode_for_engine(data)
            match message:
                case Submit(request):
                    try:
                        engine.add(request)
                        self._owners[request.request_id] = frontend
                    except RequestRefused as refused:
                        answer = Refused(request.request_id, refused.kind, refused.message, refused.retry_after)
                        self._socket.send_multipart([frontend, encode(answer)])
                case Abort(request_id, index):
                    engine.abort(request_id, index)
                    if not engine.is_live(request_id):
                        self._owners.pop(request_id, None)
                    if not engine.has_work:  # nobody would hear of the freed pages otherwise
                        self._send(engine, [])
                case Hello():
                    self._frontends.append(frontend)
                    self._socket.send_multipart([frontend, encode(ready)])
            timeout = 0

    def _send(self, engine: Engine, outputs: list[Output]) -> None:
        by_frontend: dict[bytes, list[Output]] = {frontend: [] for frontend in self._frontends}
        for output in outputs:
            by_frontend[self._owners[output.request_id]].append(output)
        for output in outputs:  # only now: several choices of a request may have ended in this step
            if not engine.is_live(output.request_id):
                self._owners.pop(output.request_id, None)
        stats = engine.stats()
        for frontend, own in by_frontend.items():
            self._socket.send_multipart([frontend, encode(StepDone(own, stats))])

    def _broadcast(self, message: Loading | Ready | Failed) -> None:
        for frontend in self._frontends:
            self._socket.send_multipart([frontend, encode(message)])


def _end_with_parent() -> None:
    # Not through sys.stdin: a thread that holds its lock for ever would make the interpreter abort at its own end.
    while os.read(0, 4096):
        pass
    os._exit(0)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := os.read(0, 65536)):
        line += more
    return line


def main() -> int:
    """Run an engine as its supervisor asks. Signals are the supervisor's business: it drains before it lets go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    config = msgspec.json.decode(_read_line(), type=EngineConfig)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    return EngineServer(sys.argv[1]).run(config)


if __name__ == "__main__":
    sys.exit(main())
