"""The GGUF container: metadata and tensors in one file, read over a memory map.

Parsed here because the `gguf` package's reader makes one numpy view for every string of the vocabulary: seconds for a
file that takes milliseconds. Every length and offset is checked against the file before it is used.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.mapped import map_file, refuse_overlap
from octavo.weights.tensor import Format, Tensor

MAGIC = b"GGUF"

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Value types of the metadata, by their numbers in the file.
_SCALARS = {
    number: np.dtype(code)
    for number, code in enumerate(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8"])
    if code
}
_STRING, _ARRAY = 8, 9

_MAX_ARRAY = 1 << 24
"""Elements of a metadata array. The largest vocabularies have 2^18; a corrupt count must not exhaust memory."""

_FORMATS = {
    0: Format.F32,
    1: Format.F16,
    2: Format.Q4_0,
    3: Format.Q4_1,
    6: Format.Q5_0,
    7: Format.Q5_1,
    8: Format.Q8_0,
    12: Format.Q4_K,
    13: Format.Q5_K,
    14: Format.Q6_K,
    30: Format.BF16,
}
# fmt: off
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}
# fmt: on


@dataclass(frozen=True)
class GGUF:
    """What a file holds.

    Attributes:
        metadata: every key with its value as Python's int, float, bool, str or a list of one of them.
        tensors: under the file's own names, as views of its memory map; shapes are row-major.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GGUF:
    """Read the header of `path`, version 2 or 3, little endian.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt; the message says what, where and the file's size.
        UnsupportedError: another version or byte order, one part of a split model, or a tensor type that is not read.
    """
    cursor = _Cursor(path, map_file(path))
    if (magic := bytes(cursor.take(4, "the magic number"))) != MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}")
    if (version := cursor.u32("the version")) not in (2, 3):
        raise UnsupportedError(f"{path}: GGUF version {_version(version)}; versions 2 and 3, little endian, are read")
    num_tensors, num_keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")

    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.corrupt(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.u32(f"the type of {key!r}"), key)
    if metadata.get("split.count", 1) != 1:
        raise UnsupportedError(
            f"{path}: one of {metadata['split.count']} parts of a split model; merge them with llama-gguf-split --merge"
        )
    return GGUF(metadata, _read_tensors(cursor, num_tensors, metadata.get("general.alignment", 32)))


def _version(number: int) -> str:
    swapped = int.from_bytes(number.to_bytes(4, "little"), "big")
    return f"{swapped} in big endian" if swapped < number else str(number)


class _Cursor:
    """A place in the file that moves on as values are read, and refuses to leave the file."""

    def __init__(self, path: Path, raw: NDArray[np.uint8]) -> None:
        self.path = path
        self.raw = raw
        self.bytes = raw.data
        self.size = len(raw)
        self.position = 0

    def corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: corrupt GGUF at byte {self.position} of {self.size}: {what}")

    def take(self, count: int, what: str) -> memoryview:
        start = self.position
        if count > self.size - start:
            raise CheckpointError(
                f"{self.path}: truncated or corrupt GGUF: {what} at byte {start} takes {count} bytes, "
                f"the file has {self.size}"
            )
        self.position = start + count
        return self.bytes[start : self.position]

    def u32(self, what: str) -> int:
        number: int = _U32.unpack(self.take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        number: int = _U64.unpack(self.take(8, what))[0]
        return number

    def string(self, what: str) -> str:
        data = self.take(self.u64(what), what)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise self.corrupt(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        what = f"the value of {key!r}"
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(self.u32(what), self.u64(what), what)
        return self._scalars(kind, 1, what)[0]

    def _array(self, kind: int, count: int, what: str) -> list[Any]:
        if count > _MAX_ARRAY:
            raise self.corrupt(f"{what} has {count} elements, more than {_MAX_ARRAY}")
        if kind == _STRING:
            return self._strings(count, what)
        return self._scalars(kind, count, what)

    def _scalars(self, kind: int, count: int, what: str) -> list[Any]:
        if (dtype := _SCALARS.get(kind)) is None:
            raise self.corrupt(f"{what} has the unknown type {kind}")
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        return values

    def _strings(self, count: int, what: str) -> list[str]:
        """What `string` does, `count` times, written out flat: a vocabulary and its merges are 100 000 strings."""
        data, size, position, length_at = self.bytes, self.size, self.position, _U64.unpack_from
        strings = []
        for index in range(count):
            start = position + 8
            end = start + length_at(data, position)[0] if start <= size else start
            if end > size:
                raise self.corrupt(f"string {index} of {count} in {what} leaves the file")
            try:
                strings.append(str(data[start:end], "utf-8"))
            except UnicodeDecodeError:
                raise self.corrupt(f"string {index} of {count} in {what} is not UTF-8") from None
            position = end
        self.position = position
        return strings


def _read_tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, Tensor]:
    """The table of tensors, which follows the metadata, and after it, aligned, their data."""
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.corrupt(f"general.alignment is {alignment!r}, not a power of two")
    table: dict[str, tuple[Format, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = cursor.string("a tensor's name")
        if name in table:
            raise cursor.corrupt(f"tensor {name!r} occurs twice")
        table[name] = _tensor_entry(cursor, name, alignment)

    data_start = -(-cursor.position // alignment) * alignment
    tensors, spans = {}, []
    for name, (form, shape, offset) in table.items():
        start = data_start + offset
        end = start + form.bytes_of(shape)
        if end > cursor.size:
            raise CheckpointError(
                f"{cursor.path}: truncated: tensor {name!r} ends at byte {end}, the file has {cursor.size}; "
                "fetch it again"
            )
        spans.append((start, end, name))
        tensors[name] = Tensor.from_bytes(name, shape, form, cursor.raw[start:end])
    refuse_overlap(cursor.path, spans)
    return tensors


def _tensor_entry(cursor: _Cursor, name: str, alignment: int) -> tuple[Format, tuple[int, ...], int]:
    """Format, shape and offset (from where the data starts) of the tensor whose name has just been read."""
    num_dimensions = cursor.u32(f"the rank of {name!r}")
    if not 1 <= num_dimensions <= 4:
        raise cursor.corrupt(f"tensor {name!r} has {num_dimensions} dimensions, not 1 to 4")
    # The file lists the fastest-varying dimension first.
    shape = tuple(reversed([cursor.u64(f"the shape of {name!r}") for _ in range(num_dimensions)]))
    kind = cursor.u32(f"the type of {name!r}")
    if (form := _FORMATS.get(kind)) is None:
        named = _OTHER_TYPES.get(kind, f"the unknown type {kind}")
        raise UnsupportedError(
            f"{cursor.path}: tensor {name!r} is stored as {named}; supported in GGUF: {', '.join(_FORMATS.values())}"
        )
    offset = cursor.u64(f"the offset of {name!r}")
    if 0 in shape or shape[-1] % form.block_size or offset % alignment:
        raise cursor.corrupt(
            f"tensor {name!r} has shape {list(shape)} and offset {offset}; rows of {form} come in blocks of "
            f"{form.block_size}, offsets in multiples of {alignment}"
        )
    return form, shape, offset
