"""What the native plan computes in one operation, against the reference backend and plain float64.

This file needs neither torch nor transformers: `make sanitize` runs it with address and undefined-behaviour sanitizers.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.graph.builder import GraphBuilder, Value
from octavo.graph.ops import Graph
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Runner
from tests.backends.weights import (
    QUANTISED,
    limit_of,
    log_softmax,
    random_tensor,
    rounded,
)
from tests.properties import examples

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

ISAS = native.instruction_sets()
WIDTH = 64


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@examples(60)
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
        hidden = rounded(hidden, 32767)  # what leaves an activation function has 16 bits
    logits = hidden.astype(np.float64) @ exact["down.weight"].T
    # A number between two steps may be rounded to the other one: of 32,767 steps, one for a few of the features.
    step = 5e-5
    size = np.abs(hidden).max() * np.abs(exact["down.weight"]).max() * np.sqrt(inner)
    assert np.abs(found - log_softmax(logits)).max() <= 2 * step * size + 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_inputs_have_16_bits_where_their_errors_count_most(isa: str) -> None:
    # Of queries, keys and values, and of what follows the last attention. A token alone attends to itself, and has its
    # value for a result.
    rng = np.random.default_rng(5)
    g = GraphBuilder()
    x = g.embedding("table", 64, 256)
    heads = [g.linear(x, name, 64) for name in ("queries", "keys", "values")]
    graph = g.finish(g.linear(g.select_rows(g.attention(*heads, layer=0, head_dim=64)), "logits", 24))
    tensors = {"table.weight": random_tensor("table.weight", "F32", 64, 256, rng)}
    for name, out, width in (("queries", 64, 256), ("keys", 64, 256), ("values", 64, 256), ("logits", 24, 64)):
        tensors[f"{name}.weight"] = random_tensor(f"{name}.weight", "Q4_0", out, width, rng)
    executor = CpuExecutor(graph, tensors, vocab_size=24, num_pages=8, kv_cache_dtype="fp32", max_positions=64, isa=isa)
    runner = Runner(executor)
    found = np.concatenate(runner.step([(runner.sequence([token]), 1) for token in range(8)]))

    exact = {name: tensor.to_float32().astype(np.float64) for name, tensor in tensors.items()}
    values = rounded(tensors["table.weight"].data[:8], 32767) @ exact["values.weight"].T
    logits = rounded(values.astype(np.float32), 32767) @ exact["logits.weight"].T
    assert np.abs(found - log_softmax(logits)).max() <= 2e-5 * np.abs(logits).max()


@pytest.mark.parametrize("isa", ISAS)
def test_what_attention_quantises_by_head_has_no_residuals(isa: str) -> None:
    # Every token stands alone, and so has its values for a result: the inputs of "output", which alone has weights in
    # integers, are the table's, and its results are the logits.
    rng = np.random.default_rng(6)
    width = 192
    g = GraphBuilder()
    x = g.embedding("table", 64, width)
    x = g.attention(*(g.linear(x, name, width) for name in ("q0", "k0", "v0")), layer=0, head_dim=96)
    x = g.linear(x, "output", width)
    x = g.attention(*(g.linear(x, name, width) for name in ("q1", "k1", "v1")), layer=1, head_dim=96)
    graph = g.finish(g.select_rows(x))
    tensors = {
        name: random_tensor(name, "Q4_0" if name == "output.weight" else "F32", *shape, rng)
        for name, shape in graph.parameters().items()
    }
    for name in ("v0.weight", "v1.weight"):
        tensors[name] = Tensor(name, (width, width), Format.F32, np.eye(width, dtype=np.float32))
    executor = CpuExecutor(
        graph, tensors, vocab_size=width, num_pages=8, kv_cache_dtype="fp32", max_positions=64, isa=isa
    )
    runner = Runner(executor)
    found = np.concatenate(runner.step([(runner.sequence([token]), 1) for token in range(8)]))

    exact = {name: tensor.to_float32().astype(np.float64) for name, tensor in tensors.items()}
    logits, others = (
        rounded(tensors["table.weight"].data[:8], 127, residuals=residuals) @ exact["output.weight"].T
        for residuals in (False, True)
    )
    tolerance = 2e-5 * np.abs(logits).max()
    assert np.abs(found - log_softmax(logits)).max() <= tolerance
    assert np.abs(found - log_softmax(others)).max() > 10 * tolerance  # residuals would be seen


@pytest.mark.parametrize("rows", [1, 5, 24])
@pytest.mark.parametrize("isa", ISAS)
def test_a_weight_of_two_linears_is_as_two_weights(isa: str, rows: int) -> None:
    # The one reads rows that are quantised whole, the other what attention quantises by head.
    rng = np.random.default_rng(7)
    shared, apart = (_two_linears(first) for first in ("output", "first"))
    tensors = {
        name: random_tensor(name, "F32" if name == "table.weight" else "Q4_0", *shape, rng)
        for name, shape in apart.parameters().items()
    }
    tensors["first.weight"] = tensors["output.weight"]
    found = [
        Runner(CpuExecutor(graph, tensors, vocab_size=24, num_pages=8, max_positions=64, isa=isa, threads=threads)).run(
            list(range(rows))
        )
        for graph in (apart, shared)
        for threads in (1, 2, 3)
    ]
    assert all(np.array_equal(one, found[0]) for one in found)


def _two_linears(first: str) -> Graph:
    g = GraphBuilder()
    h = g.linear(g.embedding("table", 64, WIDTH), first, WIDTH)
    a = g.attention(*(g.linear(h, name, WIDTH) for name in ("q0", "k0", "v0")), layer=0, head_dim=32)
    h = h + g.linear(a, "output", WIDTH)
    a = g.attention(*(g.linear(h, name, WIDTH) for name in ("q1", "k1", "v1")), layer=1, head_dim=32)
    return g.finish(g.linear(g.select_rows(a), "logits", 24))


FAR = np.array([0.0, *(sign * size for size in (1e-30, 0.5, 60.0, 88.4, 89.0, 1e10, 1e33, 3e38) for sign in (1, -1))])
"""Finite numbers whose exponentials are not, in float32."""


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("function", list(ACTIVATIONS))
@pytest.mark.parametrize("isa", ISAS)
def test_activations_of_any_finite_number(isa: str, function: Literal["silu", "gelu_tanh"], gated: bool) -> None:
    # A row's first feature is the number, and those of the second block are ones, which it is multiplied by.
    table = np.zeros((len(FAR), 64), np.float32)
    table[:, 0] = FAR
    table[:, 32:] = 1
    g = GraphBuilder()
    x = g.select_rows(g.embedding("table", len(FAR), 64))
    if gated:
        x = g.activation(g.linear(x, "gate", 32), function) * g.linear(x, "up", 32)
    else:
        x = g.activation(g.linear(x, "gate", 32), function)
    graph = g.finish(g.linear(x, "down", 8))
    eye = np.eye(64, dtype=np.float32)
    weights = {"table": table, "gate": eye[:32], "up": eye[32:], "down": eye[:8, :32]}
    tensors = {
        f"{name}.weight": Tensor(f"{name}.weight", values.shape, Format.F32, values)
        for name, values in weights.items()
        if gated or name != "up"
    }
    executor = CpuExecutor(
        graph, tensors, vocab_size=8, num_pages=4, max_positions=64, isa=isa, quantization="q8" if gated else None
    )
    with np.errstate(over="ignore"):
        expected = np.zeros((len(FAR), 8))
        expected[:, 0] = ACTIVATIONS[function](table[:, 0].astype(np.float64))
    error = np.abs(Runner(executor).run(range(len(FAR))) - log_softmax(expected))
    tolerance = 2e-3 if gated else 1e-6  # scales of weights are float16
    assert np.all(error <= tolerance * np.maximum(np.abs(expected[:, :1]), 1))


Part = Callable[[GraphBuilder, Value], Value]


def attention_part(g: GraphBuilder, x: Value) -> Value:
    q, k, v = (g.linear(x, name, WIDTH) for name in "qkv")
    return g.attention(q, k, v, layer=0, head_dim=32)


def mlp_part(g: GraphBuilder, x: Value, name: str = "") -> Value:
    gate = g.activation(g.linear(x, f"gate{name}", 96), "silu")
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
    return mlp_part(g, g.activation(g.linear(x, "g", 96), "silu") * g.linear(x, "u", 96))


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
