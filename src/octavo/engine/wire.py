"""What frontends and engines send each other: msgpack, one message per step to every frontend that has outputs."""

from array import array

import msgspec

from octavo.engine.request import Floats, Output, Refusal, Request, TokenIds
from octavo.engine.stats import EngineStats
from octavo.grammar.vocabulary import Vocabulary


class Submit(msgspec.Struct, tag=True):
    """A new or resumed request."""

    request: Request


class Abort(msgspec.Struct, tag=True):
    """End a request, or one of its choices."""

    request_id: str
    index: int | None = None


class Learn(msgspec.Struct, tag=True):
    """The model's tokens, before the first request that has a grammar."""

    vocabulary: Vocabulary


class Accepted(msgspec.Struct, tag=True):
    """Requests were taken: they wait or are computed, and will not be refused."""

    request_ids: list[str]


class Refused(msgspec.Struct, tag=True):
    """A request was not taken."""

    request_id: str
    kind: Refusal
    message: str
    retry_after: float | None = None


class StepDone(msgspec.Struct, tag=True):
    """Everything one step produced for one frontend."""

    outputs: list[Output]


class Stats(msgspec.Struct, tag=True):
    """Where the engine stands."""

    stats: EngineStats


ToEngine = Submit | Abort | Learn
ToFrontend = Accepted | Refused | StepDone | Stats


def _encode_array(values: object) -> bytes:
    assert isinstance(values, array)
    return values.typecode.encode() + values.tobytes()


def _decode_array(_: type, data: bytes) -> TokenIds | Floats:
    values: TokenIds | Floats = array(chr(data[0]))
    values.frombytes(memoryview(data)[1:])
    return values


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode_array)
_to_frontend: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend, dec_hook=_decode_array)


def encode(message: ToEngine | ToFrontend) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_for_engine(data: memoryview) -> ToEngine:
    """A frontend's message. Raises msgspec.ValidationError."""
    return _to_engine.decode(data)


def decode_for_frontend(data: memoryview) -> ToFrontend:
    """An engine's message. Raises msgspec.ValidationError."""
    return _to_frontend.decode(data)
