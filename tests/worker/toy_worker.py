"""A process under supervision that does as its configuration says: a list of actions, done in their order.

Afterwards it tells what it hears from its supervisor, in the guise of questions, until it is to stop.
"""

import os
import sys
import threading
from pathlib import Path

import msgspec

from octavo.worker.control import (
    NOTHING,
    Answer,
    Ask,
    CulpritFound,
    Failed,
    Loading,
    Notice,
    Order,
    Ready,
    Stop,
    Sync,
    Synced,
    WorkerStatus,
    raw,
)
from octavo.worker.process import Parent


def do(parent: Parent, action: list[object]) -> None:
    match action:
        case ["print", str(text)]:
            print(text, flush=True)  # noqa: T201 - it must not be taken for a report
        case ["write", str(line)]:
            os.write(parent._reports.fileno(), line.encode() + b"\n")
        case ["loading", int(done), int(total)]:
            parent.report(Loading(done, total))
        case ["ready", payload]:
            parent.report(Ready(raw(payload)))
        case ["ready", payload, heir]:
            parent.report(Ready(raw(payload), raw(heir)))
        case ["fail", str(message)]:
            parent.report(Failed(message))
            sys.exit(1)
        case ["culprit", str(name)]:
            parent.report(CulpritFound(name))
        case ["ask", int(number), payload]:
            parent.report(Ask(number, raw(payload)))
        case ["touch", str(suffix)]:
            Path(sys.argv[1].removeprefix("ipc://") + suffix).touch()
        case ["exit", int(status)]:
            sys.exit(status)


def main() -> None:
    parent = Parent()
    for action in msgspec.json.decode(parent.configuration, type=list[list[object]]):
        do(parent, action)
    stopped = threading.Event()

    def tell(*heard: object) -> None:
        parent.report(Ask(0, raw(heard)))

    def hear(order: Order) -> None:
        match order:
            case WorkerStatus(name=name, state=state):
                tell("status", name, state)
            case Answer(number, payload, error):
                if number != 0:  # else of what was told
                    tell("answer", number, msgspec.json.decode(payload or NOTHING), error)
            case Notice(payload):
                tell("notice", msgspec.json.decode(payload))
            case Sync(number):
                tell("sync")
                parent.report(Synced(number))
            case Stop(seconds):
                tell("stop", seconds)
                stopped.set()

    parent.follow(hear)
    stopped.wait()


if __name__ == "__main__":
    main()
