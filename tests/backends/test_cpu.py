"""The native backend against the reference: the same model within what 8-bit activations cost, the same bits always."""

import gc
import weakref
from typing import get_args

import numpy as np
import pytest

from octavo.backends.cpu.quantization import bits_by_weight, weight_bytes
from octavo.backends.reference.executor import ReferenceExecutor
from octavo.engine.config import KV_ITEMSIZE, EngineConfig
from octavo.engine.loader import open_backend
from octavo.errors import ConfigError
from octavo.graph.ops import ActivationFunction
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
    graph, tensors, vocab_size = oracle.parts(name)
    more = {"num_pages": 128, "page_size": 16, "max_positions": 128, "threads": 1} | settings
    return CpuExecutor(graph, tensors, vocab_size=vocab_size, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=oracle.CASES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(family: str) -> np.ndarray:
    return oracle.logprobs(oracle.make(family), TOKENS)


@pytest.mark.parametrize("isa", ISAS)
def test_every_family_against_transformers(family: str, expected: np.ndarray, isa: str) -> None:
    # Float weights: what remains is float16 in the KV cache.
    for chunks in ([70], [33, 1]):
        found = Runner(cpu_executor(family, isa=isa)).run(TOKENS, chunks)
        assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("kv_cache_dtype", "tolerance", "page_sizes"),
    [("fp32", 5e-6, (1, 24)), ("fp16", 1e-3, (5, 8)), ("int8", 2e-2, (5, 24))],
)
@pytest.mark.parametrize("isa", ISAS)
def test_kv_cache_dtypes(
    family: str, expected: np.ndarray, kv_cache_dtype: str, tolerance: float, page_sizes: tuple[int, ...], isa: str
) -> None:
    alone = Runner(cpu_executor(family, isa=isa, kv_cache_dtype=kv_cache_dtype)).run(TOKENS)
    assert np.abs(alone - expected).mean() <= tolerance * np.abs(expected).mean()
    for page_size in page_sizes:
        executor = cpu_executor(family, isa=isa, kv_cache_dtype=kv_cache_dtype, page_size=page_size)
        assert np.array_equal(Runner(executor).run(TOKENS, [9, 50, 1]), alone)


@pytest.mark.parametrize("quantization", ["q8", "q4"])
def test_quantization_of_a_float_checkpoint(family: str, quantization: str) -> None:
    # The oracle is float32 on the weights as they come out of quantising.
    graph, tensors, vocab_size = oracle.parts(family)
    bits = bits_by_weight(graph, quantization)
    rounded = {name: restored(tensor, bits.get(name)) for name, tensor in tensors.items()}
    reference = ReferenceExecutor(graph, rounded, vocab_size=vocab_size, num_pages=128, threads=1)
    expected = Runner(reference).run(TOKENS)
    executor = cpu_executor(family, quantization=quantization, kv_cache_dtype="fp32")
    found = Runner(executor).run(TOKENS)
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert error <= (1e-4 if quantization == "q8" else 0.05)  # activations have 16 and 8 bits
    sizes = [sum(weight_bytes(graph, tensors, each).values()) for each in (quantization, None)]
    assert sizes[0] < 0.6 * sizes[1]
    for threads in (1, 3):
        again = cpu_executor(family, quantization=quantization, kv_cache_dtype="fp32", threads=threads)
        assert np.array_equal(Runner(again).run(TOKENS, [11, 1, 30, 1, 27]), found)


@pytest.mark.parametrize("quantization", [None, "q8"])
def test_memory_of_the_checkpoint_is_let_go(quantization: str | None) -> None:
    model = oracle.make("llama")
    built, tensors = build(model.config.to_dict()), oracle.tensors(model)
    memory = [weakref.ref(tensor.data) for tensor in tensors.values()]
    executor = CpuExecutor(
        built.graph, tensors, vocab_size=built.vocab_size, num_pages=8, max_positions=128, quantization=quantization
    )
    del tensors
    gc.collect()
    assert not [reference for reference in memory if reference() is not None]
    assert np.isfinite(Runner(executor).run(TOKENS[:3])).all()


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


def test_the_kernels_know_all_names_of_settings_and_graphs() -> None:
    assert set(native.KvType.__members__) == set(KV_ITEMSIZE)
    assert set(native.Function.__members__) == set(get_args(ActivationFunction))


def test_operations_that_do_not_fit_their_values_are_refused() -> None:
    plan = native.Plan("portable", 1)
    narrow, wide = (native.Value(plan.add_buffer(width, selected=False), width) for width in (8, 16))
    table = np.zeros(8 * 16, np.uint8)
    integers = plan.add_weight(
        kind=native.WeightKind.U4, group=32, half_scales=True, minima=True, precise=False, out=8, in_=32, data=table
    )
    with pytest.raises(ValueError, match="equal widths"):
        plan.add(narrow, wide, out=wide)
    with pytest.raises(ValueError, match="columns that a value does not have"):
        wide.columns(8, 17)
    with pytest.raises(ValueError, match="multiplies integers"):
        plan.linear_float(wide, out=narrow, weight=integers)
    with pytest.raises(ValueError, match="those of the logits"):
        plan.select_rows(wide, out=wide)
    with pytest.raises(IndexError):
        plan.rope(wide, out=wide, rotary=0)
    with pytest.raises(ValueError, match="ends with logits"):
        plan.finish()


def test_a_missing_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no kernels for mmx; there are: .*portable"):
        cpu_executor("llama", isa="mmx")


@pytest.fixture(scope="module")
def alone(family: str) -> np.ndarray:
    return Runner(cpu_executor(family)).run(TOKENS)


@pytest.mark.parametrize(
    ("threads", "chunks"), [(1, [1]), (1, [7]), (1, [3, 33, 1, 20]), (2, [7]), (3, [3, 33, 1, 20])], ids=str
)
def test_chunking_and_threads(family: str, alone: np.ndarray, threads: int, chunks: list[int]) -> None:
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


@pytest.mark.parametrize("quantization", ["q4", "q8"])
@pytest.mark.parametrize("isa", ISAS)
def test_quantised_weights_give_the_same_bits_whatever_surrounds_a_token(isa: str, quantization: str) -> None:
    def runner(**settings: object) -> Runner:
        return Runner(cpu_executor("llama", isa=isa, quantization=quantization, **settings))

    alone = runner().run(TOKENS)
    for threads, chunks, page_size in [(1, [1], 16), (3, [7], 5), (2, [3, 33, 1, 20], 32)]:
        assert np.array_equal(runner(threads=threads, page_size=page_size).run(TOKENS, chunks), alone)
    crowd = runner(num_pages=256)
    it = crowd.sequence(TOKENS)
    others = [crowd.sequence(TOKENS[index : index + 40]) for index in range(30)]
    found = [crowd.step([(others[0], 11), (it, 40), *((other, 3) for other in others[1:])])[1]]
    found += [crowd.step([*((other, 1) for other in others), (it, 1)])[-1] for _ in range(20)]
    found.append(crowd.step([(it, 10)])[0])
    assert np.array_equal(np.concatenate(found), alone)


def test_kernels_of_another_machine_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instruction_sets", list)
    with pytest.raises(ConfigError, match=r"compiled on another machine.*install Octavo again here, or use --backend"):
        open_backend(EngineConfig(model="tiny"))
