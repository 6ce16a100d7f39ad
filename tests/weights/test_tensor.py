"""Tensors against the `gguf` package's dequantisation and torch's bfloat16, bit for bit."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from octavo.weights.tensor import Format, Tensor
from tests.weights.gguf_files import SCALES, random_rows

QUANTISED = sorted(SCALES)
seeds = st.integers(0, 2**32 - 1)


def quantised(form: Format, rows: int, blocks: int, seed: int) -> Tensor:
    data = random_rows(form, rows, blocks, np.random.default_rng(seed))
    return Tensor.from_bytes("w", (rows, blocks * form.block_size), form, data.reshape(-1))


def test_block_sizes_are_ggmls() -> None:
    for form in Format:
        assert (form.block_size, form.block_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[form.name]]
        assert form.is_quantised == (form in SCALES)


@pytest.mark.parametrize("form", QUANTISED)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 5), seed=seeds)
def test_dequantising_equals_the_reference(form: Format, rows: int, blocks: int, seed: int) -> None:
    tensor = quantised(form, rows, blocks, seed)
    expected = quants.dequantize(tensor.data, GGMLQuantizationType[form.name])
    values = tensor.to_float32()
    assert values.shape == tensor.shape
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, expected, strict=True)


@pytest.mark.parametrize("form", QUANTISED)
def test_dequantising_more_than_one_piece(form: Format) -> None:
    tensor = quantised(form, 300, 4096 // form.block_size, seed=1)
    expected = quants.dequantize(tensor.data, GGMLQuantizationType[form.name])
    np.testing.assert_array_equal(tensor.to_float32(), expected, strict=True)


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_bfloat16_equals_torch(bits: list[int]) -> None:
    data = np.array(bits, np.uint16)
    values = Tensor("w", data.shape, Format.BF16, data).to_float32()
    expected = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32), strict=True)


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_float16_equals_torch(bits: list[int]) -> None:
    data = np.array(bits, np.uint16).view(np.float16)
    values = Tensor("w", data.shape, Format.F16, data).to_float32()
    np.testing.assert_array_equal(values, torch.from_numpy(data).to(torch.float32).numpy(), strict=True)


@pytest.mark.parametrize("form", list(Format))
@given(seed=seeds, rows=st.lists(st.integers(0, 6), max_size=9))
def test_taking_rows_commutes_with_dequantising(form: Format, seed: int, rows: list[int]) -> None:
    if form.is_quantised:
        tensor = quantised(form, 7, 2, seed)
    else:
        values = np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)
        plain = values.astype(np.float16) if form is Format.F16 else values
        data = (values.view(np.uint32) >> 16).astype(np.uint16) if form is Format.BF16 else plain
        tensor = Tensor("w", (7, 3), form, data)
    taken = tensor.take_rows(np.array(rows, np.int64))
    assert taken.format is form
    assert taken.nbytes == tensor.nbytes // 7 * len(rows)
    np.testing.assert_array_equal(taken.to_float32(), tensor.to_float32()[rows], strict=True)


def test_unaligned_and_transposed_data_come_out_aligned_and_contiguous() -> None:
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    raw = np.frombuffer(b"x" + expected.tobytes(), np.uint8)[1:]
    tensor = Tensor.from_bytes("w", (3, 4), Format.F32, raw)
    assert not tensor.data.flags.aligned
    for values, wanted in (
        (tensor.to_float32(), expected),
        (Tensor("w", (4, 3), Format.F32, tensor.data.T).to_float32(), expected.T),
    ):
        assert values.flags.aligned
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, wanted)


def test_elements_of_a_quantised_vector_cannot_be_taken() -> None:
    data = random_rows(Format.Q8_0, 1, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="Q8_0"):
        Tensor.from_bytes("w", (64,), Format.Q8_0, data.reshape(-1)).take_rows(np.array([0]))


@given(form=st.sampled_from(QUANTISED), blocks=st.integers(1, 5), seed=seeds, data=st.data())
def test_a_scale_that_is_not_finite_is_found(form: Format, blocks: int, seed: int, data: st.DataObject) -> None:
    rows = random_rows(form, 3, blocks, np.random.default_rng(seed))
    shape = (3, blocks * form.block_size)
    assert Tensor.from_bytes("w", shape, form, rows.reshape(-1)).is_finite()
    place = data.draw(st.integers(0, 3 * blocks - 1)) * form.block_bytes + data.draw(st.sampled_from(SCALES[form]))
    value = np.float16(data.draw(st.sampled_from([np.nan, np.inf, -np.inf])))
    rows.reshape(-1)[place : place + 2] = np.frombuffer(value.tobytes(), np.uint8)
    assert not Tensor.from_bytes("w", shape, form, rows.reshape(-1)).is_finite()


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=2).filter(lambda bits: len(bits) % 2 == 0))
def test_floats_are_finite_as_numpy_has_it(bits: list[int]) -> None:
    raw = np.array(bits, "<u2").view(np.uint8)
    for form in (Format.F16, Format.BF16, Format.F32):
        tensor = Tensor.from_bytes("w", (len(raw) // form.block_bytes,), form, raw)
        assert tensor.is_finite() == np.isfinite(tensor.to_float32()).all()


def test_a_number_by_itself_is_finite() -> None:
    assert Tensor.from_bytes("w", (), Format.F32, np.zeros(4, np.uint8)).is_finite()
