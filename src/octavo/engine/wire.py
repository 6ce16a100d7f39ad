"""What frontends and engines send each other: msgpack over ZeroMQ, one message per engine step and frontend."""

import msgspec

from octavo.engine.config import ModelInfo
from octavo.engine.engine import EngineStats
from octavo.engine.request import Output, Refusal, Request


class Hello(msgspec.Struct, tag=True):
    """A frontend's first message: it is there."""


class Submit(msgspec.Struct, tag=True):
    """A new or resumed request."""

    request: Request


class Abort(msgspec.Struct, tag=True):
    """End a request, or one of its choices."""

    request_id: str
    index: int | None = None


class Loading(msgspec.Struct, tag=True):
    """How many of the model's weights are loaded."""

    done: int
    total: int


class Ready(msgspec.Struct, tag=True):
    """The engine takes requests."""

    info: ModelInfo


class Failed(msgspec.Struct, tag=True):
    """The model cannot be loaded; the engine ends."""

    message: str


class Refused(msgspec.Struct, tag=True):
    """A request was not taken."""

    request_id: str
    kind: Refusal
    message: str
    retry_after: float | None = None


class StepDone(msgspec.Struct, tag=True):
    """Everything one step produced for one frontend, and where the engine stands."""

    outputs: list[Output]
    stats: EngineStats


ToEngine = Hello | Submit | Abort
ToFrontend = Loading | Ready | Failed | Refused | StepDone

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_frontend: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)


def encode(message: ToEngine | ToFrontend) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_for_engine(data: bytes) -> ToEngine:
    """A frontend's message. Raises msgspec.ValidationError."""
    return _to_engine.decode(data)


def decode_for_frontend(data: bytes) -> ToFrontend:
    """An engine's message. Raises msgspec.ValidationError."""
    return _to_frontend.decode(data)
