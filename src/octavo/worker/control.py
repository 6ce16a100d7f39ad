"""What a supervisor and its processes tell each other: lines of JSON, down standard input and up standard output.

The first line that a process gets is how it is to log, if anybody has said that, and the next its configuration. When
its standard input ends, whoever started it is gone, and it ends too.
"""

from enum import StrEnum

import msgspec

from octavo.logs import LogSettings

NOTHING = msgspec.Raw(b"null")


class WorkerState(StrEnum):
    """What a worker can do for a frontend now."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class WorkerStatus(msgspec.Struct, frozen=True, tag="status", kw_only=True):
    """Where a worker stands, as its supervisor sees it.

    Attributes:
        name: the worker. state: what it can do.
        address: where the process that runs now listens. pid: which process that is; None while there is none.
        incarnation: how many processes there have been. Each has an address of its own, so that nothing that was meant
            for one reaches its heir.
        progress: of loading, as (done, total); (0, 0) while nothing is known.
        payload: what the worker said of itself when it was ready.
        failure: why it is not ready, one line.
    """

    name: str
    state: WorkerState = WorkerState.LOADING
    address: str | None = None
    pid: int | None = None
    incarnation: int = 0
    progress: tuple[int, int] = (0, 0)
    payload: msgspec.Raw = NOTHING
    failure: str | None = None


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How far a process is with what it must do before it is ready."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process does its work from now on.

    Attributes:
        payload: what others must know of it.
        configuration: what an heir is to be started with; null is what this one was started with.
    """

    payload: msgspec.Raw = NOTHING
    configuration: msgspec.Raw = NOTHING


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The process cannot do its work, and ends. The message is one line for a person."""

    message: str


class CulpritFound(msgspec.Struct, frozen=True, tag="culprit_found"):
    """A frontend has found what a worker died of and keeps it away from now on."""

    worker: str


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Something that a process wants of its supervisor. The answer has the same number."""

    number: int
    payload: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What came of an `Ask`; `error` is one line for a person, and then there is no payload."""

    number: int
    payload: msgspec.Raw = NOTHING
    error: str | None = None


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Something that every informed process is to know."""

    payload: msgspec.Raw


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """Say `Synced` with the same number when everything before this has been handled, and what is asked for, if
    anything is."""

    number: int
    payload: msgspec.Raw = NOTHING


class Synced(msgspec.Struct, frozen=True, tag="synced"):
    """Everything before the `Sync` of that number has been handled."""

    number: int
    payload: msgspec.Raw = NOTHING


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End what is under way, for so many seconds at most, and then yourself. A second one ends the waiting."""

    drain_seconds: float


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Go on with another configuration, and say `Ready` again when that is so."""

    configuration: msgspec.Raw


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Nobody asks for anything more: end when what was begun has ended, however long that takes."""


class SetLogging(msgspec.Struct, frozen=True, tag="logging"):
    """Log in another way from now on."""

    settings: LogSettings


Report = Loading | Ready | Failed | CulpritFound | Ask | Synced
Order = WorkerStatus | Answer | Notice | Sync | Stop | SetLogging | Configure | Finish

_encoder = msgspec.json.Encoder()
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_first: msgspec.json.Decoder[SetLogging] = msgspec.json.Decoder(SetLogging)
_orders: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def encode(message: Report | Order) -> bytes:
    """A message as a line."""
    return _encoder.encode(message) + b"\n"


def decode_report(line: bytes) -> Report:
    """What a process said. Raises msgspec.DecodeError."""
    return _reports.decode(line)


def decode_order(line: bytes) -> Order:
    """What a supervisor said. Raises msgspec.DecodeError."""
    return _orders.decode(line)


def as_logging(line: bytes) -> LogSettings | None:
    """What a process's first line says of its log; None if it is its configuration already."""
    return _first.decode(line).settings if line.startswith(b'{"type":"logging"') else None


def raw(value: object) -> msgspec.Raw:
    """A value as a payload: one line of JSON."""
    return msgspec.Raw(_encoder.encode(value))
