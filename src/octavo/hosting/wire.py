"""What frontends and the worker of a hosted model tell each other; `octavo.hosting.frames` makes bytes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, array_from_bytes


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A tensor, the next `size` bytes of the frame."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    size: int


class Details(msgspec.Struct, frozen=True, array_like=True):
    """What a request says of itself beside its tensors.

    Attributes:
        id: its client's name for it. parameters: that the server itself does not heed.
        sequence: which one it belongs to; 0 and "" for none. flags: `SEQUENCE_START`, `SEQUENCE_END`.
        within: the processes that can do nothing else before it has ended: those of the models that asked for it.
        trace: the number of its `octavo.hosting.trace.Span` in the frontend; 0 if it is not traced.
        path: the ensembles of somebody's own code that asked for it, each asked by the one before.
        known: whether only a process is to compute it that knows its sequence. Others say `Unknown`.
    """

    id: str = ""
    sequence: int | str = 0
    flags: int = 0
    parameters: dict[str, bool | int | float | str] = {}
    within: tuple[str, ...] = ()
    trace: int = 0
    path: tuple[str, ...] = ()
    known: bool = False


SEQUENCE_START, SEQUENCE_END = 1, 2


class Infer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Compute something of tensors.

    Attributes:
        number: of the request, on this connection.
        parts: its inputs. outputs: those that are wanted; none for all.
        priority: 0 for the default. timeout: seconds that it may wait; 0 for ever.
        arrived: `time.monotonic()` when it came to the frontend, which has the same clock.
        details: for a model that wants them (`HostedInfo.details`).
    """

    number: int
    parts: tuple[Part, ...]
    arrived: float
    outputs: tuple[str, ...] = ()
    priority: int = 0
    timeout: float = 0.0
    details: Details | None = None


class Call(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Compute something of a body, the bytes of the frame. The other attributes are as for `Infer`."""

    number: int
    media_type: str
    arrived: float
    priority: int = 0
    timeout: float = 0.0


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody waits for a request any more."""

    number: int


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """How a request was computed.

    Attributes:
        queue, compute: nanoseconds that it waited, and that its batch took.
        items: of the batch. lead: whether this request stands for the batch, where batches are counted.
    """

    queue: int
    compute: int
    items: int
    lead: bool


class Output(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A result of a request, or one of many.

    Attributes:
        parts: of an `Infer`. media_type: of the body that answers a `Call`, the bytes of the frame.
        last: whether no other follows. timing: of the last one.
        parameters: what the model says beside its outputs.
    """

    number: int
    parts: tuple[Part, ...] = ()
    media_type: str = ""
    last: bool = True
    timing: Timing | None = None
    parameters: dict[str, bool | int | float | str] | None = None


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A request that streams has had its last result."""

    number: int
    timing: Timing | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Why there is no result. `code` is the value of a `Code`; `field` is the one of a body that is to blame."""

    number: int
    code: str
    message: str
    retry_after: float | None = None
    field: str | None = None
    timing: Timing | None = None


class Pace(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Seconds that a batch takes, as they are measured: so much, and so much for each item."""

    per_batch: float
    per_item: float


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A figure of a model's own.

    Attributes:
        value: of a counter or gauge; the sum of a histogram's. changed: seconds since the epoch.
        bounds: of a histogram's buckets from above. buckets: how many there were in each, and beyond the last.
    """

    labels: dict[str, str]
    value: float
    changed: float
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()


class Family(msgspec.Struct, frozen=True, array_like=True):
    """Figures of one name. Attributes: kind: 0 for counters, 1 for gauges, 2 for histograms."""

    name: str
    description: str
    kind: int
    samples: tuple[Sample, ...]


class Figures(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """All figures of the model's own, as this process has them now."""

    families: tuple[Family, ...]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """A model wants another one to compute something.

    Attributes:
        call: its number, among those of this process. model, version: which; -1 for the newest version.
        parts, outputs, priority, timeout, details: as for `Infer`.
        many: whether any number of results is expected. waits: whether this process does nothing else meanwhile.
        interface: the number of the model's interface that the parts were made for (`HostedInfo.interface`): if it has
            another one, that is the answer. 0 if none is known yet; None if the asker says itself what tensors are.
    """

    call: int
    model: str
    version: int
    parts: tuple[Part, ...]
    outputs: tuple[str, ...]
    timeout: float
    details: Details
    many: bool
    waits: bool
    priority: int = 0
    interface: int | None = None


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A model does not want what it has asked for any more."""

    call: int


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """A result of what a model has asked for.

    Attributes:
        last: whether no other follows. empty: whether it is none, and only says so.
    """

    call: int
    parts: tuple[Part, ...] = ()
    last: bool = True
    empty: bool = False
    parameters: dict[str, bool | int | float | str] | None = None


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Why there is no result, or no other, of what a model has asked for. `code` is the value of a `Code`."""

    call: int
    code: str
    message: str
    retry_after: float | None = None


class Interface(msgspec.Struct, frozen=True, array_like=True):
    """What is to be known of a model to ask it.

    Attributes:
        number: that no other one has. inputs, outputs: as in `HostedInfo`.
        batched: whether it has a batch dimension. unnamed: whether its only output is a value without a name.
    """

    number: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    unnamed: bool


class Described(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """What is asked for was made for another interface than the model has. `Ask` it anew, with the same number."""

    call: int
    interface: Interface


READY, LOAD, UNLOAD = "ready", "load", "unload"


class Manage(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """A model wants to know whether another one is ready, or have it loaded or unloaded. `Managed` answers.

    Attributes:
        act: `READY`, `LOAD` or `UNLOAD`. config: as JSON, in the place of the repository's; empty for that.
        files: what they are called, and bytes of the frame that each has, in the place of the repository's.
        dependents: whether those are unloaded, too, that only this one needs.
    """

    call: int
    act: str
    model: str
    version: str = ""
    config: str = ""
    files: tuple[tuple[str, int], ...] = ()
    dependents: bool = False


class Managed(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """What came of a `Manage`. Attributes: ready: if that was asked. error: why nothing came of it; empty if it did."""

    call: int
    ready: bool = False
    error: str = ""


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Does the model's code say that it is ready? `Probed` answers."""

    call: int


class Probed(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """What the model's code says."""

    call: int
    ready: bool


class Unknown(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """This process does not know the sequence of a request; see `Details.known`."""

    number: int


class Block(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A block of whoever says so can be opened at a path. A size of 0 is one that is there no more."""

    number: int
    path: str
    size: int


class Returned(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Blocks of the other side that are not needed any more. A process of a model that hears it, of none even, sees
    what it has to return itself, and what it can close."""

    numbers: tuple[int, ...]


Request = Infer | Call | Cancel | Block | Returned | Answered | Refused | Described | Managed | Probe
Reply = Output | Ended | Failed | Pace | Block | Returned | Figures | Ask | Forget | Manage | Probed | Unknown


def parts_of(tensors: Mapping[str, Encoded]) -> tuple[Part, ...]:
    """What a message says of tensors whose bytes follow in this order."""
    return tuple([Part(name, each.datatype, tuple(each.shape), len(each.data)) for name, each in tensors.items()])


def tensors_of(parts: Sequence[Part], data: memoryview) -> dict[str, Encoded]:
    """The tensors of a message, which share the memory of the frame's."""
    found, at = {}, 0
    for part in parts:
        found[part.name] = Encoded(part.datatype, part.shape, data[at : at + part.size])
        at += part.size
    return found


def arrays_of(parts: Sequence[Part], data: memoryview, places: Mapping[str, Place]) -> dict[str, NDArray[Any]]:
    """The same as arrays. Raises InferenceError: the bytes of one are not those of its shape."""
    found, at = {}, 0
    for part in parts:
        name, end = part.name, at + part.size
        found[name] = array_from_bytes(part.datatype, part.shape, data[at:end], places[name])
        at = end
    return found
