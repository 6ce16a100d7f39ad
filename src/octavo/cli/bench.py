"""`octavo bench`: the engine without HTTP, on random prompts, with end-of-sequence ignored."""

import resource
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from rich.table import Table

from octavo.backends.ceilings import Ceilings, ceilings
from octavo.backends.protocol import Batch, Executor, Pending
from octavo.cli.console import counting, fetch, output
from octavo.engine.config import KV_ITEMSIZE, EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loader import LoadedEngine, load_engine
from octavo.engine.request import Request, SamplingParams
from octavo.errors import ConfigError, OctavoError
from octavo.graph.cost import step_cost


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a benchmark measured. The names are the keys of `--json`.

    Attributes:
        backend: what computed. num_prompts, input_len, output_len: the work.
        elapsed_seconds: all of it, from first step to last token.
        output_tokens_per_second, total_tokens_per_second: generated tokens, and all tokens, over all of it.
        prefill_tokens_per_second: prompt tokens over the time of the steps that computed any.
        decode_tokens_per_second: generated tokens over time, in the steps that computed nothing else.
        time_to_first_token_seconds: mean over the prompts, all of which are there from the start.
        kv_utilization: mean over steps of tokens stored / capacity of the pages that sequences hold.
        roofline_fraction: time the steps would take at the machine's measured ceilings / time they took.
        peak_rss_bytes: the most memory this process held.
    """

    backend: str
    num_prompts: int
    input_len: int
    output_len: int
    elapsed_seconds: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_seconds: float
    kv_utilization: float
    roofline_fraction: float
    peak_rss_bytes: int


class BenchError(OctavoError):
    """The engine failed while it was measured."""


class MeteredExecutor:
    """Passes steps on to an executor and notes their shapes."""

    def __init__(self, executor: Executor) -> None:
        self.num_pages = executor.num_pages
        self.page_size = executor.page_size
        self.vocab_size = executor.vocab_size
        self._executor = executor
        self._steps: list[tuple[list[int], list[int], int]] = []

    def submit(self, batch: Batch, masks_written: Callable[[], object] | None = None) -> Pending:
        """Start a step, as the executor does."""
        counts, contexts = np.diff(batch.query_starts).tolist(), batch.context_lengths.tolist()
        self._steps.append((counts, contexts, len(np.unique(batch.logits.rows))))
        return self._executor.submit(batch, masks_written)

    def ideal_seconds(self, loaded: LoadedEngine, at_best: Ceilings) -> float:
        """The time the steps would take on the roofline."""
        # Nothing is faster than the integer units; float weights do not reach them, and say so by a low fraction.
        peak = max(at_best.integer_operations_per_second, at_best.float_operations_per_second)
        seconds = 0.0
        for tokens, contexts, logit_rows in self._steps:
            costs = step_cost(
                loaded.graph,
                tokens=tokens,
                contexts=contexts,
                logit_rows=logit_rows,
                weight_bytes=loaded.weight_bytes,
                kv_itemsize=KV_ITEMSIZE[loaded.info.kv_cache_dtype],
            )
            moved = sum(cost.bytes for cost in costs) / at_best.bytes_per_second
            seconds += max(moved, sum(cost.flops for cost in costs) / peak)
        return seconds


@dataclass
class _Tally:
    """What the steps of a run added up to."""

    started: float = 0.0
    first_tokens: dict[str, float] = field(default_factory=dict)
    utilization: list[float] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_tokens: int = 0


def bench(
    config: EngineConfig,
    *,
    num_prompts: int,
    input_len: int,
    output_len: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Generate `output_len` tokens after each of `num_prompts` random prompts, all queued at once.

    Args:
        progress: called with (tokens generated, tokens in all) after every step.
    """
    if min(num_prompts, input_len, output_len) < 1:
        raise ConfigError("num_prompts, input_len and output_len must each be at least 1")
    loaded = load_engine(config)
    engine = loaded.engine
    rng = np.random.default_rng(seed)
    _run(engine, rng, num_prompts=1, input_len=min(input_len, 16), output_len=2)  # first calls pay for set-up
    engine.executor = metered = MeteredExecutor(engine.executor)
    tally = _run(engine, rng, num_prompts=num_prompts, input_len=input_len, output_len=output_len, progress=progress)
    elapsed = tally.prefill_seconds + tally.decode_seconds
    peak = peak_rss_bytes()  # before the ceilings are measured, which takes memory of its own
    prompt_tokens, output_tokens = num_prompts * input_len, num_prompts * output_len
    return BenchResult(
        backend=loaded.info.backend,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        elapsed_seconds=elapsed,
        output_tokens_per_second=output_tokens / elapsed,
        total_tokens_per_second=(prompt_tokens + output_tokens) / elapsed,
        prefill_tokens_per_second=prompt_tokens / tally.prefill_seconds,
        decode_tokens_per_second=tally.decode_tokens / tally.decode_seconds if tally.decode_seconds else 0.0,
        time_to_first_token_seconds=float(np.mean([at - tally.started for at in tally.first_tokens.values()])),
        kv_utilization=float(np.mean(tally.utilization)) if tally.utilization else 0.0,
        roofline_fraction=metered.ideal_seconds(loaded, ceilings(loaded.info.isa, loaded.info.threads)) / elapsed,
        peak_rss_bytes=peak,
    )


def _run(
    engine: Engine,
    rng: np.random.Generator,
    *,
    num_prompts: int,
    input_len: int,
    output_len: int,
    progress: Callable[[int, int], None] | None = None,
) -> _Tally:
    """Queue the prompts and step until all are answered."""
    params = SamplingParams(max_tokens=output_len, temperature=0.0)
    for number in range(num_prompts):
        prompt = array("i", rng.integers(0, engine.executor.vocab_size, input_len).tolist())
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
    tally = _Tally(started=time.perf_counter())
    generated, before = 0, tally.started
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        stats = engine.stats()
        if stats.held_tokens:
            tally.utilization.append(stats.stored_tokens / stats.held_tokens)
        if stats.step_tokens == len(outputs) and all(done.request_id in tally.first_tokens for done in outputs):
            tally.decode_seconds += now - before
            tally.decode_tokens += len(outputs)
        else:
            tally.prefill_seconds += now - before
        for produced in outputs:
            if produced.error is not None:
                raise BenchError(f"request {produced.request_id}: {produced.error}; the traceback is above")
            tally.first_tokens.setdefault(produced.request_id, now)
        generated, before = generated + len(outputs), now
        if progress is not None:
            progress(generated, num_prompts * output_len)
    return tally


def peak_rss_bytes() -> int:
    """The most memory this process held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_bench(
    config: EngineConfig, *, num_prompts: int, input_len: int, output_len: int, seed: int, as_json: bool
) -> None:
    """Measure and print, as a table or as JSON."""
    path = fetch(config.model)
    with counting("generating tokens") as report:
        result = bench(
            replace(config, model=str(path)),
            num_prompts=num_prompts,
            input_len=input_len,
            output_len=output_len,
            seed=seed,
            progress=report,
        )
    figures = asdict(result)
    if as_json:
        output.print_json(data=figures)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(
            name, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if name != "backend" else value
        )
    output.print(table)
