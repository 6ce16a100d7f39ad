"""The safetensors reader against the `safetensors` package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from octavo.errors import CheckpointError, OctavoError, UnsupportedError
from octavo.weights.safetensors import read_safetensors
from octavo.weights.tensor import Format, Tensor


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=generator),
        "b.weight": torch.randn(2, 2, 2, generator=generator).to(torch.bfloat16),
        "b.bias": torch.randn(7, generator=generator).to(torch.float16),
    }


@pytest.fixture(scope="module")
def content(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    return path.read_bytes()


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    """Put bytes into a file; the same one every time, which Hypothesis calls hundreds of times."""
    path = tmp_path_factory.mktemp("broken") / "model.safetensors"

    def put(content: bytes) -> Path:
        path.unlink(missing_ok=True)  # an older map of it must not change
        path.write_bytes(content)
        return path

    return put


def with_header(header: Any, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def test_tensors_are_what_was_saved(
    weights: dict[str, torch.Tensor], content: bytes, file_of: Callable[[bytes], Path]
) -> None:
    tensors = read_safetensors(file_of(content))
    assert set(tensors) == set(weights)
    for name, saved in weights.items():
        assert tensors[name].name == name
        assert tensors[name].nbytes == saved.nbytes
        np.testing.assert_array_equal(tensors[name].to_float32(), saved.to(torch.float32).numpy(), strict=True)
    assert [tensors[name].format for name in weights] == [Format.F32, Format.BF16, Format.F16]


def test_data_is_not_copied(content: bytes, file_of: Callable[[bytes], Path]) -> None:
    tensors = read_safetensors(file_of(content))
    assert not any(tensor.data.flags.owndata or tensor.data.flags.writeable for tensor in tensors.values())


def test_every_truncation_is_refused(content: bytes, file_of: Callable[[bytes], Path]) -> None:
    for size in range(len(content)):
        with pytest.raises(CheckpointError):
            read_safetensors(file_of(content[:size]))


@given(data=st.data())
def test_a_damaged_file_opens_or_is_refused(
    content: bytes, file_of: Callable[[bytes], Path], data: st.DataObject
) -> None:
    damaged = bytearray(content)
    header_size = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, header_size - 1))] = data.draw(st.integers(0, 255))
    tensors: dict[str, Tensor] = {}
    message = ""
    try:
        tensors = read_safetensors(file_of(bytes(damaged)))
    except OctavoError as error:
        message = str(error)
    assert "\n" not in message
    for tensor in tensors.values():
        assert tensor.to_float32().shape == tensor.shape


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b"{" * 100_000,
        b"\xff\xfe",
        {"w": [1]},
        {"w": ENTRY | {"shape": [-2]}},
        {"w": ENTRY | {"shape": [2.0]}},
        {"w": ENTRY | {"shape": [True, 2]}},
        {"w": ENTRY | {"shape": [2**62, 2**62]}},
        {"w": ENTRY | {"shape": [3]}},
        {"w": ENTRY | {"data_offsets": [0, 16]}},
        {"w": ENTRY | {"data_offsets": [8, 16]}},
        {"w": ENTRY | {"data_offsets": [8, 0]}},
        {"w": ENTRY | {"data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": [2]}},
        {"w": ENTRY, "overlapping": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_header_that_lies_is_refused_as_the_library_does(header: Any, file_of: Callable[[bytes], Path]) -> None:
    path = file_of(with_header(header, bytes(8)))
    with pytest.raises(CheckpointError):
        read_safetensors(path)
    with pytest.raises(SafetensorError), safe_open(path, "np"):
        pass


def test_other_dtypes_are_named(file_of: Callable[[bytes], Path], tmp_path: Path) -> None:
    save_file({"layer.qweight": torch.zeros(2, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"'layer.qweight' is stored as I32; supported .* F32, F16, BF16"):
        read_safetensors(tmp_path / "model.safetensors")


def test_buffers_are_left_out_whatever_their_dtype(tmp_path: Path) -> None:
    buffers = ["h.0.attn.bias", "h.0.attn.masked_bias", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    saved = {name: torch.zeros(2, dtype=torch.uint8) for name in buffers} | {"h.0.attn.c_attn.bias": torch.ones(2)}
    save_file(saved, tmp_path / "model.safetensors")
    assert list(read_safetensors(tmp_path / "model.safetensors")) == ["h.0.attn.c_attn.bias"]
