"""The safetensors format: eight bytes of length, a JSON header, then the tensors' bytes.

The header is parsed here because the `safetensors` package hands out copies, and for bfloat16, which numpy lacks, not
even those. With the header parsed, every format is a view of one memory map.
Specification: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
import re
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, UnsupportedError
from octavo.weights.mapped import map_file, refuse_overlap
from octavo.weights.tensor import Format, Tensor

_MAX_HEADER = 100_000_000
"""Bytes, by the specification."""

_FORMATS = {"F32": Format.F32, "F16": Format.F16, "BF16": Format.BF16}

_BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|(^|\.)rotary_emb\.(original_)?inv_freq|(^|\.)position_ids)$")


def is_buffer(name: str) -> bool:
    """Whether `name` is a constant that old checkpoints carry among the weights: causal mask, positions, rotary
    frequencies."""
    return _BUFFERS.search(name) is not None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file under the names it gives them, as views of its memory map; buffers are left out.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt.
        UnsupportedError: a tensor has a dtype other than F32, F16 and BF16.
    """
    raw = map_file(path)
    size = len(raw)
    length = int.from_bytes(raw[:8].tobytes(), "little")
    start = 8 + length
    if start > size or length > _MAX_HEADER:
        raise CheckpointError(
            f"{path}: not a safetensors file, or truncated: a header of {length} bytes in a file of {size}"
        )
    try:
        header = json.loads(raw[8:start].tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt safetensors header: it is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt safetensors header: it is not a JSON object")

    tensors, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__" or is_buffer(name):
            continue
        form, shape, begin, end = _entry(path, name, entry)
        if end - begin != form.bytes_of(shape) or start + end > size:
            raise CheckpointError(
                f"{path}: truncated or corrupt: {name!r} ({form} {list(shape)}, {form.bytes_of(shape)} bytes) "
                f"claims bytes {start + begin} to {start + end} of {size}"
            )
        spans.append((start + begin, start + end, name))
        tensors[name] = Tensor.from_bytes(name, shape, form, raw[start + begin : start + end])
    refuse_overlap(path, spans)
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[Format, tuple[int, ...], int, int]:
    """A header entry's format, shape and byte offsets, each checked to be what the specification says."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            if dtype not in _FORMATS:
                raise UnsupportedError(
                    f"{path}: tensor {name!r} is stored as {dtype}; supported in safetensors: {', '.join(_FORMATS)}"
                )
            return _FORMATS[dtype], tuple(shape), begin, end
    raise CheckpointError(
        f"{path}: corrupt safetensors header: entry {name!r} has no valid dtype, shape and data_offsets"
    )
