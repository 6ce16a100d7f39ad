"""From a request's JSON and the bytes behind it to tensors."""

from collections.abc import Mapping, Sequence

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import ANY
from octavo.hosting.tensors import Encoded, Place, element_count, from_json, to_bytes
from octavo.server.errors import invalid
from octavo.server.inference.http import CallHead
from octavo.server.inference.shared_memory import SharedMemory
from octavo.server.inference.tensor_json import Input, InputParameters

LENGTH_HEADER = b"inference-header-content-length"

_DATATYPES: Mapping[str, Datatype] = {each.value: each for each in Datatype}

_NOWHERE = InputParameters()


def head_length(call: CallHead, size: int) -> int:
    """Bytes of JSON in front of a body of so many bytes. Raises ApiError: there cannot be so many."""
    text = call.headers.get(LENGTH_HEADER)
    if text is None:
        return size
    try:
        length = int(text)
    except ValueError:
        shown = text[:100].decode("latin-1")
        raise invalid(f"Unable to parse Inference-Header-Content-Length, got: {shown}") from None
    if not 0 <= length <= size:
        shown = text[:100].decode("latin-1")
        raise invalid(f"inference header size should be in range (0, {size}), got: {shown}")
    return length


class Reader:
    """Takes the inputs of a request out of what follows its JSON.

    Args:
        data: what follows, in the order of the inputs that are there.
    """

    def __init__(self, model: str, data: memoryview, memory: SharedMemory) -> None:
        self._model = model
        self._data = data
        self._at = 0
        self._memory = memory

    def read(self, inputs: Sequence[Input]) -> dict[str, Encoded]:
        """By name. Raises InferenceError: they are not there, or not as it is said."""
        found: dict[str, Encoded] = {}
        for each in inputs:
            if each.name in found:
                raise InferenceError(f"input '{each.name:.300}' already exists in request")
            found[each.name] = self._one(each)
        if self._at != len(self._data):
            raise InferenceError(f"unexpected additional input data for model '{self._model}'")
        return found

    def _one(self, given: Input) -> Encoded:
        datatype = _DATATYPES.get(given.datatype)
        if datatype is None:
            raise InferenceError(f"invalid datatype for input {given.name:.300}")
        where = given.parameters or _NOWHERE
        size, region = where.binary_data_size, where.shared_memory_region
        if (given.data is not None) + (size is not None) + (region is not None) != 1:
            raise _not_in_one_place(given)
        if size is not None:
            return Encoded(datatype, given.shape, self._take(given.name, size))
        if region is not None:
            window = self._memory.window(region, where.shared_memory_offset, where.shared_memory_byte_size)
            return Encoded(datatype, given.shape, window.read())
        tensor = from_json(datatype, given.shape, given.data, Place(given.name, self._model))
        return Encoded(datatype, given.shape, to_bytes(tensor))

    def _take(self, name: str, size: int) -> memoryview:
        start = self._at
        self._at = end = start + size
        if end > len(self._data):
            raise InferenceError(
                f"unexpected size for input '{name:.300}', expecting {end - len(self._data)} additional bytes for "
                f"model '{self._model}'"
            )
        return self._data[start:end]


def _not_in_one_place(given: Input) -> InferenceError:
    where = given.parameters or _NOWHERE
    places = {
        "'data'": given.data,
        "'binary_data_size'": where.binary_data_size,
        "'shared_memory_region'": where.shared_memory_region,
    }
    there = [name for name, value in places.items() if value is not None]
    what = " ".join(["set", *there]) if there else "no field is set"
    return InferenceError(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        f"'shared_memory_region' in 'parameters'. But {what}"
    )


def raw_input(info: HostedInfo, data: bytes) -> dict[str, Encoded]:
    """The one input of a model, whose bytes are all that was sent. Raises InferenceError: its shape cannot be told."""
    if len(info.inputs) != 1:
        raise InferenceError(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(info.inputs)} inputs in "
            f"'{info.name}' model configuration"
        )
    [spec] = info.inputs
    dims = (ANY,) if spec.dims is None else spec.dims
    batch = (1,) if info.max_batch_size else ()
    if spec.datatype is None:
        raise InferenceError(f"The datatype of the raw input '{spec.name}' can not be deduced: it may be any")
    if spec.datatype is Datatype.BYTES:
        if any(size != 1 for size in dims):
            raise InferenceError(f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]")
        return {spec.name: Encoded(spec.datatype, (*batch, *dims), len(data).to_bytes(4, "little") + data)}
    if dims.count(ANY) > 1:
        raise InferenceError(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    fixed = tuple(size for size in dims if size != ANY)
    item = element_count(fixed, Place(spec.name, info.name)) * spec.datatype.itemsize
    variable = len(data) // item if item else 0
    shape = tuple(variable if size == ANY else size for size in dims)
    return {spec.name: Encoded(spec.datatype, (*batch, *shape), data)}
