"""One weight as it lies in its file: a name, a logical shape, a format, and the bytes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.weights.formats import HALVES, Format, dequantise

__all__ = ["Format", "Tensor"]

_PLAIN_DTYPES: dict[Format, np.dtype[Any]] = {
    Format.F32: np.dtype("<f4"),
    Format.F16: np.dtype("<f2"),
    # numpy has no bfloat16; its bit pattern is the upper half of a float32's.
    Format.BF16: np.dtype("<u2"),
}


_INFINITY = {Format.F32: 0x7F80_0000, Format.F16: 0x7C00, Format.BF16: 0x7F80}
"""The exponent's bits, all of them set."""

_PIECE = 1 << 18
"""Numbers looked at a time: what is computed on the way stays in the cache."""


def _below(words: NDArray[np.unsignedinteger[Any]], infinity: int) -> bool:
    """Whether all floats, given as their bits, are below infinity."""
    mask = words.dtype.type((1 << (8 * words.itemsize - 1)) - 1)  # without the sign
    pieces = (words[start : start + _PIECE] for start in range(0, len(words), _PIECE))
    return all(int((piece & mask).max()) < infinity for piece in pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A weight, usually a read-only view of a memory map.

    Attributes:
        name: Hugging Face's name once it comes out of a `Checkpoint`.
        shape: logical and row-major, as Hugging Face stores it; linear weights are [out, in].
        format: how `data` encodes the elements.
        data: plain formats: float32, float16 or uint16 (bfloat16 bit patterns) of `shape`. Quantised formats:
            uint8 [rows, bytes per row], rows being the product of all dimensions but the last; blocks run along a row.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: NDArray[Any]

    @classmethod
    def from_bytes(cls, name: str, shape: tuple[int, ...], form: Format, raw: NDArray[np.uint8]) -> "Tensor":
        """The tensor that `raw`, uint8 [`form.bytes_of(shape)`], encodes: a view, not a copy."""
        if form.is_quantised:
            return cls(name, shape, form, raw.reshape(-1, form.bytes_of(shape[-1:])))
        return cls(name, shape, form, raw.view(_PLAIN_DTYPES[form]).reshape(shape))

    @property
    def nbytes(self) -> int:
        """Bytes in the file: what reading the weight once costs."""
        return self.data.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values as float32 of `shape`, C-contiguous. For F32 it may be the read-only map itself."""
        if self.format.is_quantised:
            return dequantise(self.format, self.data).reshape(self.shape)
        if self.format is Format.BF16:
            values = (self.data.astype(np.uint32) << 16).view(np.float32)
        else:
            values = self.data.astype(np.float32, copy=False)
        # Data in a safetensors file may start at any byte; BLAS wants aligned floats.
        return np.require(values, np.float32, ["C", "A"])

    def is_finite(self) -> bool:
        """Whether no value is infinite or no number at all, told by the exponents: nothing is dequantised."""
        if self.format.is_quantised:
            words = self.data.view("<u2").reshape(-1, self.format.block_bytes // 2)
            return all(_below(words[:, at // 2], 0x7C00) for at in HALVES[self.format])
        data = np.atleast_1d(self.data)
        return _below(data.view(f"<u{data.itemsize}").reshape(-1), _INFINITY[self.format])

    def take_rows(self, rows: NDArray[np.integer[Any]]) -> "Tensor":
        """The tensor made of the rows (of the first dimension) that `rows`, int [n], names: a copy in the same format.

        Nothing is dequantised. Quantised tensors must be matrices: elements of one row share blocks.
        """
        if self.format.is_quantised and len(self.shape) != 2:
            raise ValueError(f"{self.name}: cannot take rows of a {self.format} tensor of shape {self.shape}")
        return replace(self, shape=(len(rows), *self.shape[1:]), data=self.data[rows])
