"""The native backend against the reference: the same model within what 8-bit activations cost, the same bits always."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backends.cpu.quantization import bits_by_weight
from octavo.backends.reference.executor import ReferenceExecutor
from octavo.graph.builder import GraphBuilder
from octavo.graph.ops import Graph
from octavo.models import build
from octavo.weights.quantise import quantise
from octavo.weights.tensor import Format, Tensor
from tests.backends.batches import Runner
from tests.models import oracle

native = pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
from octavo.backends.cpu.executor import CpuExecutor  # noqa: E402

TOKENS = np.random.default_rng(5).integers(0, 83, 70).tolist()
ISAS = native.instruction_sets()


def cpu_executor(name: str, **settings: object) -> CpuExecutor:
    model = oracle.make(name)
    built = build(model.config.to_dict())
    more = {"num_pages": 128, "page_size": 16, "max_positions": 128} | settings
    return CpuExecutor(built.graph, oracle.tensors(model), vocab_size=built.vocab_size, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=oracle.CASES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("isa", ISAS)
def test_every_family_against_transformers(family: str, isa: str) -> None:
    # Float weights: what remains is float16 in the KV cache.
    expected = oracle.logprobs(oracle.make(family), TOKENS)
    for chunks in ([70], [33, 1]):
        found = Runner(cpu_executor(family, isa=isa)).run(TOKENS, chunks)
        assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("kv_cache_dtype", "tolerance"), [("fp32", 5e-6), ("fp16", 1e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("isa", ISAS)
def test_kv_cache_dtypes(family: str, kv_cache_dtype: str, tolerance: float, isa: str) -> None:
    expected = oracle.logprobs(oracle.make(family), TOKENS)
    alone = Runner(cpu_executor(family, isa=isa, kv_cache_dtype=kv_cache_dtype)).run(TOKENS)
    assert np.abs(alone - expected).mean() <= tolerance * np.abs(expected).mean()
    for page_size in (1, 5, 8, 24):
        executor = cpu_executor(family, isa=isa, kv_cache_dtype=kv_cache_dtype, page_size=page_size)
        assert np.array_equal(Runner(executor).run(TOKENS, [9, 50, 1]), alone)


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


@pytest.mark.parametrize("quantization", ["q8", "q4"])
def test_quantization_of_a_float_checkpoint(family: str, quantization: str) -> None:
    # The oracle is float32 on the weights as they come out of quantising.
    model = oracle.make(family)
    built, tensors = build(model.config.to_dict()), oracle.tensors(model)
    bits = bits_by_weight(built.graph, quantization)
    rounded = {name: restored(tensor, bits.get(name)) for name, tensor in tensors.items()}
    reference = ReferenceExecutor(built.graph, rounded, vocab_size=built.vocab_size, num_pages=128)
    expected = Runner(reference).run(TOKENS)
    executor = cpu_executor(family, quantization=quantization, kv_cache_dtype="fp32")
    found = Runner(executor).run(TOKENS)
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert error <= (1e-4 if quantization == "q8" else 0.05)  # activations have 16 and 8 bits
    assert executor.weight_bytes < 0.6 * cpu_executor(family).weight_bytes
    again = cpu_executor(family, quantization=quantization, kv_cache_dtype="fp32", threads=1)
    assert np.array_equal(Runner(again).run(TOKENS, [11, 1, 30]), found)


def restored(tensor: Tensor, bits: int | None) -> Tensor:
    """A weight as it is after quantising."""
    if bits is None:
        return tensor
    values = tensor.to_float32()
    parts = quantise(values, bits)
    scales, minima = (
        np.repeat(part, 32, axis=1)[:, : values.shape[1]]
        for part in (parts.scales, np.zeros_like(parts.scales) if parts.own_minima is None else parts.own_minima)
    )
    return Tensor(tensor.name, tensor.shape, Format.F32, scales * parts.integers.astype(np.float32) + minima)


def test_a_missing_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no kernels for mmx; there are: .*portable"):
        cpu_executor("llama", isa="mmx")


def linear_graph(width: int, out: int) -> Graph:
    """Token -> embedding row -> one linear: a product of any shape with any rows."""
    g = GraphBuilder()
    return g.finish(g.linear(g.select_rows(g.embedding("table", 64, width)), "weight", out))


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
    blocks=st.integers(1, 3),
    odd=st.integers(0, 31),
    out=st.integers(1, 40),
    rows=st.integers(1, 11),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_any_shape_and_format(
    form: str, blocks: int, odd: int, out: int, rows: int, threads: int, isa: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    quantised = form in QUANTISED
    unit = 256 if form.endswith("K") else 32
    width = blocks * unit if quantised else blocks * 32 - odd
    table = random_tensor("table.weight", "F32", 64, width, rng)
    weight = random_tensor("weight.weight", form, out, width, rng)
    tensors = {"table.weight": table, "weight.weight": weight}
    graph = linear_graph(width, out)
    more = {"vocab_size": out, "num_pages": 4}
    executor = CpuExecutor(graph, tensors, max_positions=64, threads=threads, isa=isa, **more)  # type: ignore[arg-type]
    tokens = rng.integers(0, 64, rows).tolist()
    found = Runner(executor).run(tokens)
    exact = weight.to_float32().astype(np.float64)
    x = table.data[tokens]
    if quantised:
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


@pytest.fixture(scope="module")
def alone(family: str) -> np.ndarray:
    return Runner(cpu_executor(family)).run(TOKENS)


@pytest.mark.parametrize("chunks", [[1], [7], [3, 33, 1, 20]], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunking_and_threads(family: str, alone: np.ndarray, chunks: list[int], threads: int) -> None:
    assert np.array_equal(Runner(cpu_executor(family, threads=threads)).run(TOKENS, chunks), alone)


@pytest.mark.parametrize("page_size", [1, 5, 32])
def test_page_size(family: str, alone: np.ndarray, page_size: int) -> None:
    assert np.array_equal(Runner(cpu_executor(family, page_size=page_size)).run(TOKENS, [9, 50, 1]), alone)


def test_in_a_batch_of_32(family: str, alone: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    runner = Runner(cpu_executor(family, num_pages=256))
    it = runner.sequence(TOKENS)
    others = [runner.sequence(rng.integers(0, 83, 40).tolist()) for _ in range(31)]
    found = []
    while it.computed < len(TOKENS):
        work = [(other, int(rng.integers(1, 5))) for other in others if other.computed < 36]
        place = int(rng.integers(0, len(work) + 1))
        work.insert(place, (it, min(int(rng.integers(1, 12)), len(TOKENS) - it.computed)))
        found.append(runner.step(work)[place])
    assert np.array_equal(np.concatenate(found), alone)
