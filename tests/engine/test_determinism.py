"""The contract: a request's tokens and log-probabilities depend on the request alone, bit for bit.

Not on what else is in the batch, on chunking, a cached prefix, preemption, page size, or resumption.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octavo.engine.config import KV_ITEMSIZE, EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loader import load_engine
from octavo.engine.request import Request, SamplingParams

PROMPT = np.random.default_rng(1).integers(3, 300, 45).tolist()
PARAMS = SamplingParams(max_tokens=24, seed=11, temperature=0.9, top_p=0.95, logprobs=3, frequency_penalty=0.2)
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, logprobs=3)

# Tokens, and per token its log-probability and the most probable ones with theirs.
Trace = list[tuple[int, float, tuple[int, ...], tuple[float, ...]]]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
    return str(request.param)


def engine_for(model: Path, backend: str, **settings: int) -> Engine:
    # That threads change nothing is for backends to say: tests run beside others, for which several only wait.
    defaults = {"max_num_seqs": 32, "max_num_batched_tokens": 256, "kv_cache_memory_bytes": 2**20, "threads": 1}
    config = EngineConfig(model=str(model), backend=backend, **(defaults | settings))  # type: ignore[arg-type]
    return load_engine(config).engine


def trace(engine: Engine, request: Request, *, while_running: Callable[[int], None] = lambda step: None) -> Trace:
    """Run the engine until it is empty; what it produced for `request`."""
    found: Trace = []
    step = 0
    engine.add(request)
    while engine.has_work:
        while_running(step)
        for output in engine.step():
            if output.request_id == request.request_id:
                assert output.logprobs is not None
                for token, entry in zip(output.token_ids, output.logprobs, strict=True):
                    found.append((token, entry.logprob, tuple(entry.top_tokens), tuple(entry.top_logprobs)))
        step += 1
    return found


def the_request(params: SamplingParams, **changes: object) -> Request:
    return Request(request_id="it", prompt_token_ids=PROMPT, params=params, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[PARAMS, GREEDY], ids=["sampled", "greedy"])
def params(request: pytest.FixtureRequest) -> SamplingParams:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_model: Path, backend: str, params: SamplingParams) -> Trace:
    """The request by itself in a fresh engine: what all others are held against."""
    found = trace(engine_for(tiny_model, backend), the_request(params))
    assert len(found) == 24
    assert len({token for token, *_ in found}) > 4, "a model that repeats itself tests little"
    return found


def others(engine: Engine, count: int, *, seed: int, longest: int = 60) -> None:
    """Put other requests into the engine."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        prompt = rng.integers(0, 300, rng.integers(1, longest)).tolist()
        more = SamplingParams(max_tokens=int(rng.integers(1, 40)), seed=number)
        engine.add(Request(request_id=f"other {seed} {number}", prompt_token_ids=prompt, params=more))


def test_in_a_batch_of_32(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace) -> None:
    engine = engine_for(tiny_model, backend)
    others(engine, 31, seed=2)
    assert trace(engine, the_request(params)) == alone


def test_others_come_and_go(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace) -> None:
    engine = engine_for(tiny_model, backend)

    def arrive(step: int) -> None:
        if step % 3 == 0 and step < 30:
            others(engine, 2, seed=100 + step)

    assert trace(engine, the_request(params), while_running=arrive) == alone


@pytest.mark.parametrize("budget", [1, 7, 16])
def test_chunked(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace, budget: int) -> None:
    engine = engine_for(tiny_model, backend, max_num_batched_tokens=budget, max_num_seqs=1)
    assert trace(engine, the_request(params)) == alone


def test_with_a_cached_prefix(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace) -> None:
    engine = engine_for(tiny_model, backend)
    warm = SamplingParams(max_tokens=4)
    engine.add(Request(request_id="warm", prompt_token_ids=PROMPT[:40], params=warm))
    while engine.has_work:
        engine.step()
    assert trace(engine, the_request(params)) == alone
    assert engine.stats().prefix_hits == 32


def test_with_everything_cached(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace) -> None:
    engine = engine_for(tiny_model, backend)
    trace(engine, the_request(params))
    assert trace(engine, the_request(params)) == alone


def test_preempted(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace) -> None:
    # 8 pages of 16 tokens: the request needs five of them, and so do the two before it.
    page_bytes = 2 * 2 * 16 * 16 * KV_ITEMSIZE["fp16" if backend == "cpu" else "fp32"]
    engine = engine_for(tiny_model, backend, kv_cache_memory_bytes=8 * page_bytes)
    for number in range(2):
        more = SamplingParams(max_tokens=30, seed=number)
        engine.add(
            Request(request_id=f"other {number}", prompt_token_ids=PROMPT[number + 1 : number + 30], params=more)
        )
    preempted = [False]

    def watch(step: int) -> None:
        preempted[0] = preempted[0] or engine.stats().preemptions > 0

    assert trace(engine, the_request(params), while_running=watch) == alone
    assert preempted[0], "nothing was preempted"


@pytest.mark.parametrize("page_size", [1, 4, 32, 64])
def test_page_size(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace, page_size: int) -> None:
    engine = engine_for(tiny_model, backend, page_size=page_size)
    others(engine, 5, seed=3)
    assert trace(engine, the_request(params)) == alone


@pytest.mark.parametrize("delivered", [1, 10, 23])
def test_resumed(tiny_model: Path, backend: str, params: SamplingParams, alone: Trace, delivered: int) -> None:
    engine = engine_for(tiny_model, backend)
    others(engine, 3, seed=4)
    tokens = [token for token, *_ in alone[:delivered]]
    assert trace(engine, the_request(params, outputs={0: tokens}, resumed=True)) == alone[delivered:]


def test_choices_are_those_of_their_seeds(tiny_model: Path, backend: str) -> None:
    engine = engine_for(tiny_model, backend)
    params = SamplingParams(n=3, max_tokens=12, seed=5, logprobs=0)
    engine.add(Request(request_id="all", prompt_token_ids=PROMPT, params=params))
    together: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    while engine.has_work:
        for output in engine.step():
            entry = (output.logprobs or [])[0]
            together[output.index].append((output.token_ids[0], entry.logprob))
    for index, found in together.items():
        single = SamplingParams(max_tokens=12, seed=5 + index, logprobs=0)
        expected = trace(engine_for(tiny_model, backend), the_request(single))
        assert found == [(token, logprob) for token, logprob, *_ in expected]
