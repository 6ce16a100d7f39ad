"""What a configuration has a model compute before it is ready."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.computation import Computation
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Encoded, Tensor
from octavo.hosting.triton.description import Description, Warmup, WarmupInput, datatype_of
from octavo.hosting.triton.layout import WARMUP_FOLDER
from octavo.hosting.wire import Infer, parts_of


def warm_up(computation: Computation, description: Description, folder: Path, *, streams: bool) -> None:
    """Compute all samples, each as often as it says.

    Args:
        folder: of the model. streams: whether a request may have any number of results.

    Raises:
        ConfigError: a sample is none that the model takes, its file cannot be read, or the model fails on it.
    """
    for number, sample in enumerate(description.model_warmup):
        about = f"model_warmup '{sample.name or number}'"
        tensors = {name: _tensor(name, each, sample, folder, about) for name, each in sample.inputs.items()}
        known = {each.name for each in description.input}
        if unknown := tensors.keys() - known:
            raise ConfigError(f"{about}: the model has no input '{min(unknown)}'; it has {', '.join(sorted(known))}")
        for _ in range(max(sample.count, 1)):
            try:
                _compute(computation, tensors, streams=streams)
            except InferenceError as error:
                raise ConfigError(f"{about}: {error}") from error


def _compute(computation: Computation, tensors: Mapping[str, Encoded], *, streams: bool) -> None:
    """Raises InferenceError: the model fails."""
    data = b"".join(bytes(each.data) for each in tensors.values())
    request = Infer(number=0, parts=parts_of(tensors), arrived=time.monotonic())
    task = computation.read(request, memoryview(data))
    if streams:
        for _ in computation.stream(task):
            pass
        return
    [answer] = computation.compute([task])
    if isinstance(answer, InferenceError):
        raise answer


def _tensor(name: str, each: WarmupInput, sample: Warmup, folder: Path, about: str) -> Encoded:
    """An input of a sample, the same for all items of its batch."""
    datatype = datatype_of(each.data_type)
    item = _read(name, each, datatype, folder, about) if each.input_data_file else _made(each, datatype)
    if not sample.batch_size:
        return item
    return Encoded(datatype, (sample.batch_size, *each.dims), bytes(item.data) * sample.batch_size)


def _made(each: WarmupInput, datatype: Datatype) -> Encoded:
    count = math.prod(each.dims)
    if datatype is Datatype.BYTES:
        array = np.full(each.dims, b"", object)
    elif each.random_data:
        array = _random(datatype, count).reshape(each.dims)
    else:
        array = np.zeros(each.dims, datatype.dtype)
    return Encoded.of(Tensor(datatype, array))


def _random(datatype: Datatype, count: int) -> NDArray[Any]:
    """The same at every start, and numbers that can be computed with: the bytes of any float may be no number."""
    generator = np.random.default_rng(0)
    if datatype.dtype.kind == "f":
        return generator.random(count).astype(datatype.dtype)
    if datatype is Datatype.BF16:  # the upper halves of floats
        return (generator.random(count).astype(np.float32).view(np.uint32) >> 16).astype(datatype.dtype)
    if datatype is Datatype.BOOL:
        return generator.integers(0, 2, count).astype(datatype.dtype)
    return np.frombuffer(generator.bytes(count * datatype.itemsize), datatype.dtype)


def _read(name: str, each: WarmupInput, datatype: Datatype, folder: Path, about: str) -> Encoded:
    """From a file, in the protocol's binary form."""
    within = folder / WARMUP_FOLDER
    file = within / each.input_data_file
    if not file.resolve().is_relative_to(within.resolve()):
        raise ConfigError(f"{about}: input_data_file is '{each.input_data_file:.200}', which is not in {within}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{about}: cannot read {file}: {error.strerror}") from None
    expected = math.prod(each.dims) * datatype.itemsize
    if datatype is not Datatype.BYTES and len(data) < expected:
        raise ConfigError(f"{about}: input '{name}' needs {expected} bytes, and {file} has {len(data)}")
    return Encoded(datatype, each.dims, data if datatype is Datatype.BYTES else data[:expected])
