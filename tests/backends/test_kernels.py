"""The native linears against plain float64, over shapes and formats at random.

This file needs neither torch nor transformers: `make sanitize` runs it with address and undefined-behaviour sanitizers.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.graph.builder import GraphBuilder
from octavo.weights.quantise import quantise
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Runner
from tests.backends.weights import QUANTISED, attention_graph, linear_graph, random_tensor, rounded
from tests.properties import examples

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

ISAS = native.instruction_sets()


@examples(60)
@given(
    form=st.sampled_from(["F32", "F16", "BF16", *QUANTISED]),
    quantization=st.sampled_from([None, "q8", "q4"]),
    blocks=st.integers(1, 3),
    odd=st.integers(0, 31),
    out=st.integers(1, 40),
    rows=st.integers(1, 11),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_any_shape_and_format(
    form: str, quantization: str | None, blocks: int, odd: int, out: int, rows: int, threads: int, isa: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    quantised = form in QUANTISED
    unit = 256 if form.endswith("K") else 32
    width = blocks * unit if quantised else blocks * 32 - odd
    table = random_tensor("table.weight", "F32", 64, width, rng)
    weight = random_tensor("weight.weight", form, out, width, rng)
    tensors = {"table.weight": table, "weight.weight": weight}
    zero = Tensor("zero.weight", (out, width), Format.F32, np.zeros((out, width), np.float32))
    tensors["zero.weight"] = zero
    graph = linear_graph(width, out, last=False)
    more = {"vocab_size": out, "num_pages": 4, "quantization": quantization}
    executor = CpuExecutor(graph, tensors, max_positions=64, threads=threads, isa=isa, **more)  # type: ignore[arg-type]
    tokens = rng.integers(0, 64, rows).tolist()
    found = Runner(executor).run(tokens)
    exact = weight.to_float32().astype(np.float64)
    x = table.data[tokens]
    if quantization is not None and not quantised:
        bits = int(quantization[1])
        exact, x = restored(weight, bits), restored(table, 8)[tokens]
        x = rounded(x, 127 if bits == 4 else 32767)
    elif quantised:
        if quantization is not None:
            x = restored(table, 8)[tokens]
        x = rounded(x, 127 if form.startswith("Q4") else 32767)
    logits = x.astype(np.float64) @ exact.T
    expected = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    assert np.abs(found - expected).max() <= 2e-5 * max(np.abs(logits).max(), 1.0)


@pytest.mark.parametrize("form", ["F32", "F16", "BF16", *QUANTISED])
def test_embedding_rows_are_exact(form: str) -> None:
    rng = np.random.default_rng(2)
    table = random_tensor("table.weight", form, 64, 256, rng)
    identity = Tensor("weight.weight", (256, 256), Format.F32, np.eye(256, dtype=np.float32))
    tensors = {"table.weight": table, "weight.weight": identity}
    executor = CpuExecutor(linear_graph(256, 256), tensors, vocab_size=256, num_pages=4, max_positions=64)
    reference = ReferenceExecutor(linear_graph(256, 256), tensors, vocab_size=256, num_pages=4)
    tokens = list(range(64))
    assert np.allclose(Runner(executor).run(tokens), Runner(reference).run(tokens), atol=2e-5)


def restored(tensor: Tensor, bits: int) -> np.ndarray:
    """A weight's values as they are after quantising."""
    values = tensor.to_float32()
    parts = quantise(values, bits)
    scales, minima = (
        np.repeat(part, 32, axis=1)[:, : values.shape[1]]
        for part in (parts.scales, np.zeros_like(parts.scales) if parts.own_minima is None else parts.own_minima)
    )
    return scales * parts.integers.astype(np.float32) + minima


@examples(40)
@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 100),
    bits=st.sampled_from([4, 8]),
    spread=st.sampled_from([0.0, 1e-9, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantising_loses_at_most_half_a_step(rows: int, width: int, bits: int, spread: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * np.float32(spread)
    parts = quantise(values, bits)
    padded = np.pad(values, ((0, 0), (0, -width % 32)), mode="edge").reshape(rows, -1, 32)
    span = padded.max(axis=2) - padded.min(axis=2) if bits == 4 else np.abs(padded).max(axis=2)
    step = span / (15 if bits == 4 else 127)
    scales = np.repeat(parts.scales, 32, axis=1)[:, :width]
    minima = 0.0 if parts.own_minima is None else np.repeat(parts.own_minima, 32, axis=1)[:, :width]
    found = scales * parts.integers.astype(np.float32) + minima
    assert parts.integers.min() >= (0 if bits == 4 else -127)
    assert parts.integers.max() <= (15 if bits == 4 else 127)
    error = np.abs(np.pad(found - values, ((0, 0), (0, -width % 32)))).reshape(rows, -1, 32)
    typical = np.sqrt(np.square(error).mean(axis=2))
    # Beside half a step: scale and minimum are float16.
    assert np.all(typical <= 0.5 * step + 1e-3 * np.abs(padded).max(axis=2) + 1e-7)


@pytest.mark.parametrize(
    "forms", [("Q4_K", "Q6_K", "Q4_K"), ("Q4_0", "F16", "Q8_0"), ("Q5_1", "Q8_0", "Q5_0")], ids=str
)
@pytest.mark.parametrize("isa", ISAS)
def test_siblings_of_different_formats(forms: tuple[str, ...], isa: str) -> None:
    # As in files that keep values in more bits than queries and keys. 4,096 inputs are two segments of them.
    rng = np.random.default_rng(3)
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, 4096))
    parts = [g.linear(x, f"weight{index}", 24) for index in range(3)]
    y = parts[0] + parts[1] + parts[2]
    graph = g.finish(y)
    tensors = {"table.weight": random_tensor("table.weight", "F32", 64, 4096, rng)}
    for index, form in enumerate(forms):
        tensors[f"weight{index}.weight"] = random_tensor(f"weight{index}.weight", form, 24, 4096, rng)
    executor = CpuExecutor(graph, tensors, vocab_size=24, num_pages=4, max_positions=64, isa=isa)
    tokens = list(range(0, 64, 3))
    x = tensors["table.weight"].data[tokens]
    logits = np.zeros((len(tokens), 24))
    for index, form in enumerate(forms):
        limit = 127 if form.startswith("Q4") else 32767
        seen = rounded(x, limit) if form in QUANTISED else x
        logits += seen.astype(np.float64) @ tensors[f"weight{index}.weight"].to_float32().astype(np.float64).T
    peak = logits.max(1, keepdims=True)
    expected = logits - np.log(np.exp(logits - peak).sum(1, keepdims=True)) - peak
    found = Runner(executor).run(tokens)
    assert np.abs(found - expected).max() <= 2e-5 * max(np.abs(logits).max(), 1.0)


@pytest.mark.usefixtures("unchecked_weights")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["F16", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_does_not_become_a_number(value: float, form: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    table = random_tensor("table.weight", "F32", 64, 64, rng)
    table.data[1, 40:42] = value
    table.data[2] *= 1e-38  # has no inverse, and is a number all the same
    weight = random_tensor("weight.weight", form, 8, 64, rng)
    tensors = {"table.weight": table, "weight.weight": weight}
    executor = CpuExecutor(linear_graph(64, 8), tensors, vocab_size=8, num_pages=4, max_positions=64, isa=isa)
    assert np.isfinite(Runner(executor).run([0, 2])).all()
    with pytest.raises(ValueError, match="not finite"):
        Runner(executor).run([0, 1])


@pytest.mark.parametrize("isa", ISAS)
def test_a_step_without_logits_and_an_empty_one(isa: str) -> None:
    graph = attention_graph(2, 1, 8, None)
    (shape,) = graph.parameters().values()
    table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensors = {"table.weight": Tensor("table.weight", shape, Format.F32, table)}
    executor = CpuExecutor(graph, tensors, vocab_size=16, num_pages=1, max_positions=16, isa=isa)
    runner = Runner(executor)
    sequence = runner.sequence(range(16))
    assert runner.step([(sequence, 9)], logits=False) == []
    assert runner.step([(sequence, 0)])[0].shape == (0, 16)
    found = runner.step([(sequence, 7)])[0]
    assert np.array_equal(found, Runner(executor).run(range(16))[9:])
