"""The native kernels against plain float64 and the reference backend, over shapes and formats at random.

This file needs neither torch nor transformers: `make sanitize` runs it with address and undefined-behaviour sanitizers.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.graph.builder import GraphBuilder, Value
from octavo.graph.ops import Graph
from octavo.weights.quantise import quantise
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Runner

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

ISAS = native.instruction_sets()


def linear_graph(width: int, out: int, *, last: bool = True) -> Graph:
    """Token -> embedding row -> one linear: a product of any shape with any rows.

    The matrix of the logits is never brought to 4 bits; unless the linear is to be the `last`, it is followed by
    another, whose result is added.
    """
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, width))
    y = g.linear(x, "weight", out)
    return g.finish(y if last else y + g.linear(x, "zero", out))


QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def random_tensor(name: str, form: str, rows: int, width: int, rng: np.random.Generator) -> Tensor:
    """A weight in any storage format."""
    values = rng.normal(size=(rows, width)).astype(np.float32)
    match form:
        case "F32":
            return Tensor(name, values.shape, Format.F32, values)
        case "F16":
            return Tensor(name, values.shape, Format.F16, values.astype(np.float16))
        case "BF16":
            return Tensor(name, values.shape, Format.BF16, (values.view(np.uint32) >> 16).astype(np.uint16))
        case "Q4_K" | "Q5_K" | "Q6_K":  # the gguf package only reads these: any bytes with sane scales are a weight
            size = Format(form).block_bytes
            data = rng.integers(0, 256, (rows, width // 256, size), dtype=np.uint8)
            halves = rng.uniform(0.001, 0.01, (rows, width // 256, 2)).astype(np.float16).view(np.uint8)
            if form == "Q6_K":
                data[:, :, 208:210] = halves[:, :, :2]
            else:
                data[:, :, :4] = halves
            return Tensor(name, values.shape, Format(form), data.reshape(rows, -1))
        case _:
            data = quants.quantize(values, GGMLQuantizationType[form])
            return Tensor(name, values.shape, Format(form), data)


@settings(max_examples=60, deadline=None)
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


def rounded(x: np.ndarray, limit: int) -> np.ndarray:
    """Activations as the kernels see them: whole numbers up to `limit`, scaled per row and 32 features."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))
    blocks = padded.reshape(len(x), -1, 32)
    most = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(limit), most, out=np.zeros_like(most), where=most > 0)
    integers = np.rint(blocks * inverse).astype(np.float64)
    return (integers * (most / np.float32(limit))).reshape(len(x), -1)[:, : x.shape[1]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    peak = logits.max(1, keepdims=True)
    result: np.ndarray = logits - np.log(np.exp(logits - peak).sum(1, keepdims=True)) - peak
    return result


def limit_of(form: str) -> int:
    """The largest whole number that the input of a weight of that format is rounded to."""
    return 127 if form.startswith("Q4") else 32767


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@settings(max_examples=60, deadline=None)
@given(
    forms=st.tuples(st.sampled_from(QUANTISED), st.sampled_from(QUANTISED)),
    inner=st.sampled_from([32, 64, 96, 40, 256]),
    blocks=st.integers(1, 3),
    out=st.integers(1, 40),
    rows=st.integers(1, 17),
    function=st.sampled_from(list(ACTIVATIONS)),
    bias=st.booleans(),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_gates_of_any_shape(
    forms: tuple[str, str],
    inner: int,
    blocks: int,
    out: int,
    rows: int,
    function: Literal["silu", "gelu_tanh"],
    bias: bool,
    threads: int,
    isa: str,
    seed: int,
) -> None:
    # Halves of whole blocks are multiplied side by side; 40 features are not. The last linear is the logits'.
    rng = np.random.default_rng(seed)
    if forms[1].endswith("K"):
        inner = 256
    elif inner % 32:
        forms = (forms[0], "F32")
    width = blocks * (256 if forms[0].endswith("K") else 32)
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, width))
    h = g.activation(g.linear(x, "gate", inner, bias=bias), function) * g.linear(x, "up", inner, bias=bias)
    graph = g.finish(g.linear(h, "down", out))
    tensors = {"table.weight": random_tensor("table.weight", "F32", 64, width, rng)}
    for name in ("gate", "up"):
        tensors[f"{name}.weight"] = random_tensor(f"{name}.weight", forms[0], inner, width, rng)
        if bias:
            values = rng.normal(size=inner).astype(np.float32)
            tensors[f"{name}.bias"] = Tensor(f"{name}.bias", (inner,), Format.F32, values)
    tensors["down.weight"] = random_tensor("down.weight", forms[1], out, inner, rng)
    executor = CpuExecutor(graph, tensors, vocab_size=out, num_pages=4, max_positions=64, threads=threads, isa=isa)
    tokens = rng.integers(0, 64, rows).tolist()
    found = Runner(executor).run(tokens)

    exact = {name: tensor.to_float32().astype(np.float64) for name, tensor in tensors.items()}
    seen = rounded(tensors["table.weight"].data[tokens], limit_of(forms[0])).astype(np.float64)
    gate, up = (seen @ exact[f"{name}.weight"].T + exact.get(f"{name}.bias", 0.0) for name in ("gate", "up"))
    hidden = (ACTIVATIONS[function](gate) * up).astype(np.float32)
    if forms[1] in QUANTISED:
        hidden = rounded(hidden, limit_of(forms[1]))
    logits = hidden.astype(np.float64) @ exact["down.weight"].T
    # A number between two steps may be rounded to the other one: of 127 or 32,767 steps, one for a few of the features.
    step = 2e-3 if limit_of(forms[1]) == 127 else 5e-5
    size = np.abs(hidden).max() * np.abs(exact["down.weight"]).max() * np.sqrt(inner)
    assert np.abs(found - log_softmax(logits)).max() <= 2 * step * size + 1e-5


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["Q4_0", "Q4_1", "Q4_K"]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([8, 20, 32, 64]),
    blocks=st.integers(1, 3),
    rows=st.integers(1, 11),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_attended_comes_from_inputs_of_16_bits(
    form: str, kv_heads: int, group: int, head_dim: int, blocks: int, rows: int, threads: int, isa: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    width = blocks * (256 if form == "Q4_K" else 32)
    g = GraphBuilder()
    x = g.embedding("table", 64, width)
    sizes = dict(zip("qkv", (kv_heads * group, kv_heads, kv_heads), strict=True))
    q, k, v = (g.linear(x, name, heads * head_dim) for name, heads in sizes.items())
    graph = g.finish(g.select_rows(g.attention(q, k, v, layer=0, head_dim=head_dim)))
    table = random_tensor("table.weight", "F32", 64, width, rng)
    tensors = {"table.weight": table}
    for name, heads in sizes.items():
        tensors[f"{name}.weight"] = random_tensor(f"{name}.weight", form, heads * head_dim, width, rng)
    spread = max(float(tensors[f"{name}.weight"].to_float32().std()) for name in "qkv")
    table.data[:] /= spread * width**0.5  # scores that leave the softmax some choice
    more = {"vocab_size": kv_heads * group * head_dim, "num_pages": 4}
    executor = CpuExecutor(
        graph,
        tensors,
        max_positions=64,
        threads=threads,
        isa=isa,
        kv_cache_dtype="fp32",
        **more,  # type: ignore[arg-type]
    )
    tokens = rng.integers(0, 64, rows).tolist()
    expected = Runner(ReferenceExecutor(graph, tensors, **more)).run(tokens)  # type: ignore[arg-type]
    # With 8 bits the error is 2e-3 of the largest value and more.
    assert np.abs(Runner(executor).run(tokens) - expected).max() <= 3e-4 * max(np.abs(expected).max(), 1.0)


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


@settings(max_examples=40, deadline=None)
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


def attention_graph(heads: int, kv_heads: int, head_dim: int, window: int | None) -> Graph:
    """Token -> queries, keys and values from a table -> attention."""
    g = GraphBuilder()
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    q, k, v = g.split(g.embedding("table", 64, sum(widths)), widths)
    y = g.attention(q, k, v, layer=0, head_dim=head_dim, window=window)
    return g.finish(g.select_rows(y))


@settings(max_examples=60, deadline=None)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 7),
    head_dim=st.sampled_from([1, 2, 7, 8, 13, 16, 40, 64, 72]),
    page_size=st.sampled_from([1, 3, 8, 16, 17, 64]),
    window=st.sampled_from([None, 1, 5, 40]),
    length=st.sampled_from([1, 2, 7, 8, 31, 32, 33, 64, 97]),
    kv_cache_dtype=st.sampled_from(["fp32", "fp16", "int8"]),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_of_any_shape(
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    window: int | None,
    length: int,
    kv_cache_dtype: str,
    threads: int,
    isa: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    graph = attention_graph(kv_heads * group, kv_heads, head_dim, window)
    (shape,) = graph.parameters().values()
    table = rng.normal(size=shape).astype(np.float32)
    tensors = {"table.weight": Tensor("table.weight", shape, Format.F32, table)}
    vocab = kv_heads * group * head_dim
    tokens = rng.integers(0, 64, length).tolist()
    chunks = [int(rng.integers(1, length + 1)), 1]
    pages = {"vocab_size": vocab, "num_pages": length, "page_size": page_size}
    executor = CpuExecutor(
        graph,
        tensors,
        max_positions=128,
        threads=threads,
        isa=isa,
        kv_cache_dtype=kv_cache_dtype,
        **pages,  # type: ignore[arg-type]
    )
    found = Runner(executor).run(tokens, chunks)
    expected = Runner(ReferenceExecutor(graph, tensors, **pages)).run(tokens)  # type: ignore[arg-type]
    tolerance = {"fp32": 2e-5, "fp16": 1e-2, "int8": 0.2}[kv_cache_dtype]
    assert np.abs(found - expected).max() <= tolerance
    whole = Runner(executor).run(tokens, [length])
    assert np.array_equal(whole, found)


WIDTH = 64
Part = Callable[[GraphBuilder, Value], Value]


def attention_part(g: GraphBuilder, x: Value) -> Value:
    q, k, v = (g.linear(x, name, WIDTH) for name in "qkv")
    return g.attention(q, k, v, layer=0, head_dim=32)


def mlp_part(g: GraphBuilder, x: Value, name: str = "") -> Value:
    gate = g.silu(g.linear(x, f"gate{name}", 96))
    return g.linear(gate * g.linear(x, f"up{name}", 96), f"down{name}", WIDTH)


def one_after_the_other(g: GraphBuilder, x: Value) -> Value:
    x = x + g.linear(attention_part(g, x), "o", WIDTH)
    return x + mlp_part(g, x)


def side_by_side(g: GraphBuilder, x: Value) -> Value:
    return x + (g.linear(attention_part(g, x), "o", WIDTH) + mlp_part(g, x))


def attention_waits(g: GraphBuilder, x: Value) -> Value:
    attended = attention_part(g, x)
    mlp = mlp_part(g, x)
    return (x + g.linear(attended, "o", WIDTH)) + mlp


def two_gates(g: GraphBuilder, x: Value) -> Value:
    return mlp_part(g, x, "1") + mlp_part(g, x, "2")


def gates_in_gates(g: GraphBuilder, x: Value) -> Value:
    return mlp_part(g, g.silu(g.linear(x, "g", 96)) * g.linear(x, "u", 96))


def gates_after_attention(g: GraphBuilder, x: Value) -> Value:
    return mlp_part(g, attention_part(g, x))


@pytest.mark.parametrize(
    "part",
    [one_after_the_other, side_by_side, attention_waits, two_gates, gates_in_gates, gates_after_attention],
    ids=lambda part: part.__name__,
)
@pytest.mark.parametrize("rows", [1, 11, 40])
@pytest.mark.parametrize("isa", ISAS)
def test_what_waits_for_its_reader_is_not_overwritten(part: Part, rows: int, isa: str) -> None:
    g = GraphBuilder()
    graph = g.finish(g.select_rows(part(g, g.embedding("table", 64, WIDTH))))
    tensors = {}
    for index, (name, (out, width)) in enumerate(graph.parameters().items()):
        rng = np.random.default_rng(index)
        tensors[name] = random_tensor(name, "F32" if name == "table.weight" else "Q8_0", out, width, rng)
    tensors["table.weight"].data[:] *= 0.1
    more = {"vocab_size": WIDTH, "num_pages": 8}
    executor = CpuExecutor(graph, tensors, max_positions=64, isa=isa, kv_cache_dtype="fp32", **more)  # type: ignore[arg-type]
    tokens = np.random.default_rng(9).integers(0, 64, rows).tolist()
    found = Runner(executor).run(tokens)
    expected = Runner(ReferenceExecutor(graph, tensors, **more)).run(tokens)  # type: ignore[arg-type]
    assert np.abs(found - expected).max() <= 2e-4 * max(np.abs(expected).max(), 1.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("page_size", "group", "window"), [(16, 3, None), (17, 5, None), (16, 1, 700)])
def test_long_contexts_are_the_same_bits_by_spans_and_in_one_go(
    isa: str, kv_cache_dtype: str, page_size: int, group: int, window: int | None
) -> None:
    # A token alone is computed by several threads, span by span; beside many others by one.
    rng = np.random.default_rng(7)
    graph = attention_graph(2 * group, 2, 16, window)
    (shape,) = graph.parameters().values()
    table = rng.normal(size=shape).astype(np.float32)
    tensors = {"table.weight": Tensor("table.weight", shape, Format.F32, table)}
    tokens = rng.integers(0, 64, 1300).tolist()
    short = rng.integers(0, 64, 40).tolist()
    pages = {"vocab_size": 2 * group * 16, "num_pages": 400, "page_size": page_size}

    def executor(threads: int) -> CpuExecutor:
        more = {"max_positions": 2048, "threads": threads, "isa": isa, "kv_cache_dtype": kv_cache_dtype}
        return CpuExecutor(graph, tensors, **pages, **more)  # type: ignore[arg-type]

    whole = Runner(executor(2)).run(tokens)
    for threads in (1, 3):
        assert np.array_equal(Runner(executor(threads)).run(tokens, [1296, 1]), whole)
    runner = Runner(executor(2))
    one, others = runner.sequence(tokens), [runner.sequence(short) for _ in range(12)]
    runner.step([(one, 1299), *((other, 39) for other in others)])
    crowd = runner.step([(one, 1), *((other, 1) for other in others)])
    assert np.array_equal(crowd[0], whole[1299:])
    runner = Runner(executor(2))
    one, other = runner.sequence(tokens), runner.sequence(short)
    runner.step([(one, 1299), (other, 39)])
    pair = runner.step([(other, 1), (one, 1)])
    assert np.array_equal(pair[1], whole[1299:])
    assert np.array_equal(pair[0], crowd[1])
    if kv_cache_dtype == "fp32":
        expected = Runner(ReferenceExecutor(graph, tensors, **pages)).run(tokens)  # type: ignore[arg-type]
        assert np.abs(whole - expected).max() <= 2e-5


@pytest.mark.parametrize(
    "forms", [("Q4_K", "Q6_K", "Q4_K"), ("Q4_0", "F16", "Q8_0"), ("Q5_1", "Q8_0", "Q5_0")], ids=str
)
@pytest.mark.parametrize("isa", ISAS)
def test_siblings_of_different_formats(forms: tuple[str, ...], isa: str) -> None:
    # As in files that keep values in more bits than queries and keys. 2,560 inputs are more than one chunk.
    rng = np.random.default_rng(3)
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, 2560))
    parts = [g.linear(x, f"weight{index}", 24) for index in range(3)]
    y = parts[0] + parts[1] + parts[2]
    graph = g.finish(y)
    tensors = {"table.weight": random_tensor("table.weight", "F32", 64, 2560, rng)}
    for index, form in enumerate(forms):
        tensors[f"weight{index}.weight"] = random_tensor(f"weight{index}.weight", form, 24, 2560, rng)
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


@pytest.mark.parametrize("kv_cache_dtype", ["fp32", "fp16", "int8"])
def test_keys_that_are_not_finite_do_not_become_numbers(kv_cache_dtype: str) -> None:
    graph = attention_graph(2, 1, 8, None)
    (shape,) = graph.parameters().values()
    table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    table[1, 20] = np.nan
    tensors = {"table.weight": Tensor("table.weight", shape, Format.F32, table)}
    pages = {"vocab_size": 16, "num_pages": 4, "max_positions": 64}
    executor = CpuExecutor(graph, tensors, kv_cache_dtype=kv_cache_dtype, **pages)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        Runner(executor).run([0, 1, 2])


def test_a_linear_computed_with_its_sum_still_finds_its_input() -> None:
    # The first linear waits for the sum, which stands after the last node that seems to read x.
    rng = np.random.default_rng(6)
    g = GraphBuilder()
    x = g.scale(g.select_rows(g.embedding("table", 64, 24)), 1.0)
    graph = g.finish(g.linear(x, "first", 24) + g.linear(x, "second", 24))
    tensors = {
        "table.weight": random_tensor("table.weight", "F32", 64, 24, rng),
        "first.weight": random_tensor("first.weight", "F32", 24, 24, rng),
        "second.weight": random_tensor("second.weight", "F16", 24, 24, rng),
    }
    more = {"vocab_size": 24, "num_pages": 4}
    found = Runner(CpuExecutor(graph, tensors, max_positions=64, **more)).run([1, 2, 3])  # type: ignore[arg-type]
    expected = Runner(ReferenceExecutor(graph, tensors, **more)).run([1, 2, 3])  # type: ignore[arg-type]
    assert np.allclose(found, expected, atol=1e-4)


def test_a_residual_that_is_a_slice() -> None:
    rng = np.random.default_rng(5)
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", 64, 20))
    _, tail = g.split(x, [7, 13])
    graph = g.finish(tail + g.linear(x, "weight", 13))
    tensors = {
        "table.weight": random_tensor("table.weight", "F32", 64, 20, rng),
        "weight.weight": random_tensor("weight.weight", "F32", 13, 20, rng),
    }
    more = {"vocab_size": 13, "num_pages": 4}
    found = Runner(CpuExecutor(graph, tensors, max_positions=64, **more)).run([1, 2, 3])  # type: ignore[arg-type]
    expected = Runner(ReferenceExecutor(graph, tensors, **more)).run([1, 2, 3])  # type: ignore[arg-type]
    assert np.allclose(found, expected, atol=1e-5)


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
