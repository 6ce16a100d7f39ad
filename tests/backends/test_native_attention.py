"""The native attention against the reference backend, over shapes at random.

This file needs neither torch nor transformers: `make sanitize` runs it with address and undefined-behaviour sanitizers.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.graph.builder import GraphBuilder
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Runner
from tests.backends.weights import attention_graph, random_tensor
from tests.properties import examples

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

ISAS = native.instruction_sets()


@examples(60)
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
    tokens = rng.integers(0, 64, 1090).tolist()
    short = rng.integers(0, 64, 40).tolist()
    pages = {"vocab_size": 2 * group * 16, "num_pages": 400, "page_size": page_size}

    def executor(threads: int) -> CpuExecutor:
        more = {"max_positions": 2048, "threads": threads, "isa": isa, "kv_cache_dtype": kv_cache_dtype}
        return CpuExecutor(graph, tensors, **pages, **more)  # type: ignore[arg-type]

    few = Runner(executor(2)).run(short)
    for threads in (2, 1, 3):
        runner = Runner(executor(threads))
        one, others = runner.sequence(tokens), [runner.sequence(short) for _ in range(12)]
        beside = [(other, 38) for other in others]
        if threads == 2:
            [whole] = runner.step([(one, 1090)])
            runner.step(beside)
        else:
            assert np.array_equal(runner.step([(one, 1086), *beside])[0], whole[:1086])
        one.computed = 1086
        alone = [runner.step([(one, 1)])[0] for _ in range(4)]
        assert np.array_equal(np.concatenate(alone), whole[1086:])
        one.computed = 1089  # the last token is computed once more, and not all of them
        crowd = runner.step([(one, 1), *((other, 1) for other in others)])
        assert np.array_equal(crowd[0], whole[1089:])
        assert np.array_equal(crowd[1], few[38:39])
        one.computed = 1089
        pair = runner.step([(others[0], 1), (one, 1)])
        assert np.array_equal(pair[0], few[39:])
        assert np.array_equal(pair[1], whole[1089:])
    if kv_cache_dtype == "fp32":
        expected = Runner(ReferenceExecutor(graph, tensors, **pages)).run(tokens)  # type: ignore[arg-type]
        assert np.abs(whole - expected).max() <= 2e-5


@pytest.mark.usefixtures("unchecked_weights")
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


@examples(40)
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
