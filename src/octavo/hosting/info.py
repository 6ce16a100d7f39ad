"""What the worker of a hosted model says of it when it is ready."""

import hashlib
from functools import cached_property
from typing import Any

import msgspec

from octavo.hosting.batching import Batching
from octavo.hosting.ensemble import Ensemble
from octavo.hosting.sequencing import Sequencing
from octavo.hosting.signature import Signature, TensorSpec
from octavo.hosting.wire import Interface

DECOUPLED_IS_NOT_CACHED = (
    "Response Cache does not currently support model {} with 'decoupled' transaction policy. Please disable the "
    "response cache."
)
"""Why a model cannot be served that streams and whose answers are to be kept, in Triton's words."""


class HostedInfo(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A model that is no language model.

    Attributes:
        name: that requests use. runtime: what computes it: "python", "onnx", "torch", … platform: Triton's name for it.
        inputs, outputs: as tensors.
        batching: how requests are brought together; None computes each alone.
        queue: how they wait, in either case.
        sequencing: how the requests of sequences are brought together, if it computes such.
        instances: that compute at once, in `processes` processes. at_once: batches that these compute.
        concurrent: whether one process computes all instances on a device.
        numbers: of the processes, if they are not counted from 1 to `processes`.
        earlier: the numbers that it had before it got other instances, the last ones first.
        execution_timeout: seconds that a batch may take, or that may pass between two results; 0 for any number.
        streams: whether a request has any number of results.
        probes: whether its code is to be asked whether it is ready.
        response_cache: whether its answers may be kept, and given to whoever asks the same.
        details: whether it wants to know what requests say beside their tensors.
        body: of one request as JSON (a JSON schema), for a model that takes JSON; None takes tensors alone.
        result: of one request, or of each piece if it streams, as JSON.
        definitions: that both refer to, under "#/$defs/".
        files: the fields of a body that are files or bytes.
        sources: the files of the code, and of what it imports from beside it, with when each was written last.
        description: what its code says of itself.
        config: the `ModelConfig` as JSON of a model of a Triton repository, complete.
        text: the field that `/generate` calls "prompt"; empty if this model has no such field.
        ensemble: the models that it is made of, if it is.
        asks: the models that its code names, each with its version or `LATEST`, if it is an ensemble of somebody's own;
            None if it is no such.
        unnamed: whether its result is a value without a name.
    """

    name: str
    runtime: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: Batching | None = None
    queue: Batching = Batching(max_batch_size=1)
    sequencing: Sequencing | None = None
    instances: int = 1
    at_once: int = 1
    processes: int = 1
    concurrent: bool = False
    numbers: tuple[int, ...] = ()
    earlier: tuple[tuple[int, ...], ...] = ()
    execution_timeout: float = 0.0
    streams: bool = False
    probes: bool = False
    response_cache: bool = False
    details: bool = False
    body: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    definitions: dict[str, Any] = {}
    files: tuple[str, ...] = ()
    sources: dict[str, float] = {}
    description: str = ""
    config: dict[str, Any] | None = None
    text: str = ""
    ensemble: Ensemble | None = None
    asks: tuple[tuple[str, int], ...] | None = None
    unnamed: bool = False

    @property
    def max_batch_size(self) -> int:
        """Items of a request at most, along its first dimension; 0 if it has no batch dimension."""
        return 0 if self.batching is None else self.batching.max_batch_size

    @cached_property
    def interface(self) -> Interface:
        """What is to be known of it to ask it."""
        known = (self.inputs, self.outputs, self.batching is not None, self.unnamed)
        digest = hashlib.blake2b(msgspec.msgpack.encode(known), digest_size=8).digest()
        return Interface(int.from_bytes(digest) or 1, *known)

    @property
    def process_numbers(self) -> tuple[int, ...]:
        """Of the processes that it has."""
        return self.numbers or tuple(range(1, self.processes + 1))

    @cached_property
    def signature(self) -> Signature:
        """What requests are checked against."""
        return Signature(self.name, self.inputs, self.outputs, self.max_batch_size)
