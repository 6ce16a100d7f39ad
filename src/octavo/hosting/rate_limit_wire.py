"""What the processes of models and the rate limiter tell each other, as lines of JSON over a Unix socket."""

import msgspec

from octavo.hosting.rate_limits import Limits


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """A process has these instances, from slot 0 on. `Joined` or `Refused` answers.

    Attributes:
        process: its name. all: the instances of the model, with those of its other processes.
    """

    process: str
    model: str
    instances: tuple[Limits, ...]
    all: tuple[Limits, ...]


class Want(msgspec.Struct, frozen=True, array_like=True, tag="want"):
    """There is a batch to compute, for one of these slots. `Permit` answers when it is its turn.

    Attributes:
        within: the processes that go on only when it is computed. `Stuck` answers, too, if it cannot be before. With
            others of these the same may be wanted once more.
    """

    slots: tuple[int, ...]
    within: tuple[str, ...] = ()


class Release(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """A slot computes no more. Attributes: used: whether it has."""

    slot: int
    used: bool = True


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """The instances are known from now on, until the connection ends."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Why the instances could never compute; in one line."""

    message: str


class Stuck(msgspec.Struct, frozen=True, array_like=True, tag="stuck"):
    """Why what is wanted will never be computed."""

    message: str


class Permit(msgspec.Struct, frozen=True, array_like=True, tag="permit"):
    """A slot may compute a batch now."""

    slot: int


Asked = Join | Want | Release
Told = Joined | Refused | Permit | Stuck

_encoder = msgspec.json.Encoder()
_asked: "msgspec.json.Decoder[Asked]" = msgspec.json.Decoder(Asked)
_told: "msgspec.json.Decoder[Told]" = msgspec.json.Decoder(Told)


def encode(message: Asked | Told) -> bytes:
    """A message as a line."""
    return _encoder.encode(message) + b"\n"


def decode_asked(line: bytes) -> Asked:
    """What a process says. Raises msgspec.DecodeError."""
    return _asked.decode(line)


def decode_told(line: bytes) -> Told:
    """What the rate limiter says. Raises msgspec.DecodeError."""
    return _told.decode(line)
