"""From a model's outputs to a reply: binary, JSON, into shared memory, or the best classes alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import orjson

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting import wire
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Outputs
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place
from octavo.server.inference.classification import classify
from octavo.server.inference.http import Part
from octavo.server.inference.json_arrays import array_json
from octavo.server.inference.shared_memory import SharedMemory, Window
from octavo.server.inference.tensor_json import Output

LARGE_BYTES = 256 * 1024
"""Tensors that are copied, or written as JSON, are so in a thread from this size on."""

KNOWN_HEADS = 16
"""Kinds of replies that are kept for requests which come again and again."""

_QUOTED = lru_cache(1024)(lambda text: orjson.dumps(text).decode())
"""A name as JSON has it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How an output is wanted.

    Attributes:
        binary: rather than in the JSON. classes: so many of the best, instead of the values. window: where to put it.
    """

    binary: bool = False
    classes: int = 0
    window: Window | None = None


_PLAIN = Wish()
_BINARY = Wish(binary=True)


def wishes(outputs: Sequence[Output], memory: SharedMemory, *, binary: bool) -> dict[str, Wish]:
    """By name, in the order in which they are wanted.

    Args:
        binary: how one is wanted that does not say so.

    Raises:
        InferenceError: what cannot be wanted together.
    """
    found: dict[str, Wish] = {}
    for each in outputs:
        how = each.parameters
        if how is None:
            found[each.name] = _BINARY if binary else _PLAIN
            continue
        window = None
        if how.shared_memory_region is not None:
            for name, value in (("classification", how.classification), ("binary_data", how.binary_data)):
                if value:
                    raise InferenceError(f"Output can't set both 'shared_memory_region' and '{name}'")
            window = memory.window(how.shared_memory_region, how.shared_memory_offset, how.shared_memory_byte_size)
        wants_binary = binary if how.binary_data is None else how.binary_data
        found[each.name] = Wish(wants_binary, how.classification, window)
    return found


class ReplyWriter:
    """Writes the replies of one request.

    Args:
        wishes: none for all outputs. binary: how those are wanted that nothing is said of.
        request_id: what the client calls the request; empty if it does not.
    """

    def __init__(
        self,
        deployment: HostedDeployment,
        info: HostedInfo,
        wishes: Mapping[str, Wish],
        *,
        binary: bool,
        request_id: str = "",
    ) -> None:
        self._info = info
        self._wishes = wishes
        self._default = _BINARY if binary else _PLAIN
        model = f'"model_name":{_QUOTED(deployment.name)},"model_version":"{deployment.version}",'
        self._known: dict[tuple[wire.Part, ...], bytes] = {}
        self._head = f'{{"id":{orjson.dumps(request_id).decode()},{model}' if request_id else f"{{{model}"

    @property
    def binary(self) -> bool:
        """Whether an output follows the JSON."""
        return any(each.binary for each in self._kinds)

    def size(self, outputs: Mapping[str, Encoded]) -> int:
        """Bytes of the outputs, which may be more in JSON."""
        size = 0
        for each in outputs.values():
            size += len(each.data)
        return size

    def is_large(self, outputs: Mapping[str, Encoded]) -> bool:
        """Whether they are to be written in a thread. What follows the JSON as it is takes no time."""
        return self.size(outputs) > LARGE_BYTES and any(each != _BINARY for each in self._kinds)

    @property
    def _kinds(self) -> Collection[Wish]:
        return self._wishes.values() if self._wishes else (self._default,)

    @property
    def lasts(self) -> bool:
        """Whether it can write the replies of other requests that say the same: no memory is named that may be another
        by then."""
        return all(each.window is None for each in self._kinds)

    def known_head(self, described: tuple[wire.Part, ...]) -> bytes:
        """The JSON of a reply whose outputs follow it just as they came; empty unless such a one was written before."""
        return self._known.get(described, b"")

    def write(self, outputs: Outputs, described: tuple[wire.Part, ...] = ()) -> tuple[bytes, list[Part]]:
        """The JSON of a reply, and the bytes that follow it.

        Args:
            described: the outputs as they came; given if others like them may be written.

        Raises:
            InferenceError: an output cannot be written as it is wanted.
        """
        entries, parts = [], []
        for name in self._wishes or outputs:
            output = outputs.get(name)
            if output is None:
                raise InferenceError(f"the model gave no output '{name}'", Code.INTERNAL)
            wish = self._wishes.get(name, self._default)
            if wish.classes:
                output = self._classes(name, output, wish.classes)
            entry = (
                f'{{"name":{_QUOTED(name)},"datatype":"{output.datatype.value}","shape":['
                f"{','.join(map(str, output.shape))}]"
            )
            if wish.window is not None:
                wish.window.write(name, output.data)
                entries.append(f"{entry}}}")
            elif wish.binary:
                parts.append(output.data)
                entries.append(f'{entry},"parameters":{{"binary_data_size":{len(output.data)}}}}}')
            else:
                entries.append(f'{entry},"data":{values_json(output, Place(name, self._info.name))}}}')
        said = f'"parameters":{orjson.dumps(outputs.parameters).decode()},' if outputs.parameters else ""
        head = f'{self._head}{said}"outputs":[{",".join(entries)}]}}'.encode()
        as_they_came = len(parts) == len(described) and list(self._wishes or outputs) == [
            each.name for each in described
        ]
        if described and not said and as_they_came and self.lasts and len(self._known) < KNOWN_HEADS:
            self._known[described] = head
        return head, parts

    def _classes(self, name: str, output: Encoded, classes: int) -> Encoded:
        spec: TensorSpec | None = next((each for each in self._info.outputs if each.name == name), None)
        labels = spec.labels if spec else ()
        place = Place(name, self._info.name)
        return classify(output, classes, place, batched=self._info.max_batch_size > 0, labels=labels)


def values_json(output: Encoded, place: Place) -> str:
    """The elements as a flat JSON list; NaN and infinity are strings.

    Raises:
        InferenceError: elements that JSON has no form of.
    """
    if output.datatype in (Datatype.FP16, Datatype.BF16):
        raise InferenceError(
            f"sending {output.datatype} data via JSON is not supported. Please use the binary data format for output "
            f"{place.input}"
        )
    array = output.decode(place).array.ravel()
    if output.datatype is Datatype.BYTES:
        try:
            return orjson.dumps([each.decode() for each in array.tolist()]).decode()
        except UnicodeDecodeError:
            raise InferenceError(
                f"output '{place.input}' has bytes that are no text in UTF-8. Please use the binary data format for it"
            ) from None
    return array_json(array)
