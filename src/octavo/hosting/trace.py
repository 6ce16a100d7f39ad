"""What is written down of a request that is traced: what happened to it when, and its tensors; and the same of what it
makes models ask of others."""

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Buffer, Encoded, Place
from octavo.hosting.wire import Output, Part, Timing, tensors_of

TIMESTAMPS, TENSORS = "TIMESTAMPS", "TENSORS"
LEVELS = (TIMESTAMPS, TENSORS)
"""What there is to be written down, by Triton's names."""

QUEUE_INPUT, BACKEND_OUTPUT = "TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_OUTPUT"

_numbers = itertools.count(1)
_live: "WeakValueDictionary[int, Span]" = WeakValueDictionary()


class Trace:
    """A client's request, and all that comes of it.

    Args:
        levels: of `LEVELS`. on_end: called when nothing more will be written down.

    Attributes:
        root: the request itself. spans: of all models that it was for, those first that were asked first.
    """

    def __init__(self, levels: Collection[str], on_end: "Callable[[Trace], None]") -> None:
        self.has_timestamps, self.has_tensors = TIMESTAMPS in levels, TENSORS in levels
        self.spans: list[Span] = []
        self._on_end = on_end
        self._open = 1
        self.root = Span(self, None)

    @property
    def began(self) -> bool:
        """Whether a model was asked."""
        return bool(self.root.model)

    @property
    def goes_on(self) -> bool:
        """Whether something of it has not ended yet."""
        return self._open > 0

    def open(self) -> None:
        """Something more is to be waited for."""
        self._open += 1

    def close(self) -> None:
        """Something of it has ended: the answer to the client, or a request to a model."""
        self._open -= 1
        if not self._open:
            self._on_end(self)

    def entries(self, first: int) -> Iterator[dict[str, Any]]:
        """What a file of traces has of it, in Triton's form.

        Args:
            first: the number of the first span there; the others have those that follow.
        """
        ids = {span: first + place for place, span in enumerate(self.spans)}
        for span, number in ids.items():
            head: dict[str, Any] = {"id": number, "model_name": span.model, "model_version": int(span.version)}
            if span.request_id:
                head["request_id"] = span.request_id
            if span.parent is not None:
                head["parent_id"] = ids[span.parent]
            yield head
            for name, nanoseconds in sorted(span.events, key=lambda event: event[1]):
                yield {"id": number, "timestamps": [{"name": name, "ns": nanoseconds}]}
            for activity, name, tensor in span.tensors:
                yield {"id": number, "activity": activity, "tensor": _written(name, tensor)}


class Span:
    """A request to one model, within a trace.

    Attributes:
        parent: the request that it comes of; None for a client's own. number: by which `find` knows it.
        model, version: empty as long as none was asked. request_id: what its client calls it.
        events: by name, with the nanoseconds of `time.monotonic()`. tensors: by what was done with them, and by name.
    """

    __slots__ = ("__weakref__", "events", "model", "number", "parent", "request_id", "tensors", "trace", "version")

    def __init__(self, trace: Trace, parent: "Span | None") -> None:
        self.trace = trace
        self.parent = parent
        self.number = next(_numbers)
        self.model = self.version = self.request_id = ""
        self.events: list[tuple[str, int]] = []
        self.tensors: list[tuple[str, str, Encoded]] = []
        _live[self.number] = self

    def child(self) -> "Span":
        """A request that comes of this one."""
        span = Span(self.trace, self)
        span.request_id = self.request_id
        return span

    def event(self, name: str, seconds: float | None = None) -> None:
        """Something has happened. Args: seconds: of `time.monotonic()`; now without."""
        if self.trace.has_timestamps:
            self.events.append((name, time.monotonic_ns() if seconds is None else int(seconds * 1e9)))

    # --- what becomes of it in a model ------------------------------------------------------------------------------

    def start(self, model: str, version: str, arrived: float, parts: Sequence[Part], data: Sequence[Buffer]) -> None:
        """A model takes it. Args: arrived: when it came. parts, data: its inputs."""
        self.model, self.version = model, version
        self.trace.spans.append(self)
        self.trace.open()
        self.event("REQUEST_START", arrived)
        self.event("QUEUE_START")
        self._keep(QUEUE_INPUT, parts, data)

    def respond(self) -> None:
        """The model has said something."""
        self.event("INFER_RESPONSE_COMPLETE")

    def result(self, output: Output, data: memoryview) -> None:
        """A result has come, maybe of many."""
        self.respond()
        self._keep(BACKEND_OUTPUT, output.parts, (data,))

    def computed(self, arrived: float, timing: Timing) -> None:
        """It is known how it was computed. Inputs and outputs have no time of their own, as in statistics."""
        began = arrived + timing.queue / 1e9
        ended = began + timing.compute / 1e9
        for name, seconds in (
            ("COMPUTE_START", began),
            ("COMPUTE_INPUT_END", began),
            ("COMPUTE_OUTPUT_START", ended),
            ("COMPUTE_END", ended),
        ):
            self.event(name, seconds)

    def end(self) -> None:
        """The model has done with it, or it is not wanted any more."""
        self.event("REQUEST_END")
        self.trace.close()

    def _keep(self, activity: str, parts: Sequence[Part], data: Sequence[Buffer]) -> None:
        if self.trace.has_tensors:
            own = memoryview(b"".join(data))  # which is nobody else's, and needed by nobody else any more
            self.tensors += [(activity, name, each) for name, each in tensors_of(parts, own).items()]


def find(number: int) -> Span | None:
    """A request that is traced, as long as that goes on."""
    span = _live.get(number)
    return span if span is not None and span.trace.goes_on else None


def _written(name: str, tensor: Encoded) -> dict[str, str]:
    """A tensor as Triton writes it: values as text, with commas between them."""
    return {
        "name": name,
        "data": _values(tensor),
        "shape": ",".join(map(str, tensor.shape)),
        "dtype": str(tensor.datatype),
    }


def _values(tensor: Encoded) -> str:
    try:
        array = tensor.decode(Place("", "")).array.ravel()
    except InferenceError:  # a model has sent what is none; whoever asked is told that
        return ""
    match tensor.datatype:
        case Datatype.BYTES:
            texts = (each.decode(errors="backslashreplace").replace('"', '""') for each in array.tolist())
            return ",".join([f'"{each}"' for each in texts])
        case Datatype.BOOL:
            array = array.astype(np.uint8)
        case Datatype.BF16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
    return ",".join([each.removesuffix(".0") for each in array.astype(str).tolist()])
