"""The native kernels one by one, beside what this machine can do at best.

Run it with the Python that Octavo is installed in; README.md beside this file says what the figures mean.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from octavo.backends.ceilings import Ceilings, ceilings
from octavo.backends.common.cores import physical_cores
from octavo.backends.cpu._native import BLOCK, KvType, instruction_sets, tile
from octavo.backends.cpu.executor import CpuExecutor, layer_page_bytes
from octavo.backends.cpu.memory import Slabs
from octavo.backends.cpu.repack import pack
from octavo.backends.protocol import Batch, Int32, Int64, LogitRows
from octavo.cli.console import counting
from octavo.graph.builder import GraphBuilder
from octavo.graph.ops import Graph
from octavo.weights.tensor import Format, Tensor

FORMATS = {"4-bit": Format.Q4_1, "8-bit": Format.Q8_0, "F32": Format.F32, "F16": Format.F16, "BF16": Format.BF16}
"""Kinds of weights, each by a format of checkpoints that becomes it."""

SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)]
"""[out, in] of SmolLM2 135M: queries, keys and values; attention's output; gate and up; down; logits."""

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
"""SmolLM2 135M's attention."""

LINEAR_ROWS = [1, 4, 32, 256]
ATTENTION_ROWS = [1, 32]
CONTEXTS = [128, 512, 2048]
PAGE_SIZE = 16

STEP_BYTES = 64 * 2**20
"""Weights or KV that a step goes through at least: more than caches keep from one step to the next."""

STEP_SECONDS = 0.02
"""Work at the arithmetic ceiling after which a step needs no more linears: they are bound by arithmetic anyway. The
shorter a step, the more likely is one that nothing else on the machine has disturbed."""

CELL_SECONDS = 0.4
MIN_TRIES = 3

CEILINGS_EVERY = 4
"""Shapes after which the ceilings are measured once more."""

NARROW = 8
"""Width of what stands for queries, keys and values where attention is not what is measured."""

ENTRIES = 64
"""Rows of the embedding that inputs are taken from."""

FILL_TOKENS = 512
"""Tokens of a step that fills KV pages."""

REDIRECTED_WIDTH = 160
"""Columns that a table may take in a file."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel on one shape.

    Attributes:
        kernel: "linear" or "attention". kind: of the weights or the KV. shape: as shown.
        rows: of activations, or sequences that each decode one token.
        repeats: linears or attention layers in a step.
        seconds: of the fastest step, all repeats.
        operations: of a step; a multiplication and an addition are two.
        bytes: of weights or of KV that a step reads, each counted once.
        integer: whether the products are of integers.
    """

    kernel: str
    kind: str
    shape: str
    rows: int
    repeats: int
    seconds: float
    operations: int
    bytes: int
    integer: bool

    def ideal_seconds(self, best: Ceilings) -> tuple[float, float]:
        """What a step takes at the memory's and at the arithmetic's ceiling."""
        peak = best.integer_operations_per_second if self.integer else best.float_operations_per_second
        return self.bytes / best.bytes_per_second, self.operations / peak

    def as_json(self, best: Ceilings) -> dict[str, object]:
        """The measurement with what follows from it."""
        memory, arithmetic = self.ideal_seconds(best)
        return asdict(self) | {
            "operations_per_second": self.operations / self.seconds,
            "bytes_per_second": self.bytes / self.seconds,
            "bound": _bound(memory, arithmetic),
            "fraction": max(memory, arithmetic) / self.seconds,
        }


class Bench:
    """Measures kernels of one instruction set on some threads; `best` says when a step is long enough."""

    def __init__(self, isa: str, threads: int, best: Ceilings) -> None:
        self._isa = isa
        self._threads = threads
        self._best = best
        self._rng = np.random.default_rng(0)

    def linears(self, kind: str, out: int, in_: int) -> Iterator[Measurement]:
        """A weight [out, in] times each number of rows."""
        weight = _random_weight(FORMATS[kind], out, in_, self._rng)
        table = _random_weight(Format.F32, ENTRIES, in_, self._rng)
        size = pack([weight], tile(self._isa), Slabs()).data.nbytes
        integer = weight.format.is_quantised
        peak = self._best.integer_operations_per_second if integer else self._best.float_operations_per_second
        executor, built = None, 0
        for rows in LINEAR_ROWS:
            operations = 2 * rows * out * in_
            count = max(min(math.ceil(STEP_BYTES / size), math.ceil(STEP_SECONDS * peak / operations)), 1)
            if executor is None or count != built:
                graph = _linear_graph(count, out, in_)
                # Packing gives every linear memory of its own: one set of random values serves them all.
                tensors = dict.fromkeys(graph.parameters(), weight) | {"table.weight": table}
                executor, built = self._executor(graph, tensors, num_pages=max(LINEAR_ROWS)), count
            seconds = _best_seconds(executor, self._rows(rows))
            yield Measurement(
                "linear", kind, f"{out}x{in_}", rows, count, seconds, count * operations, count * size, integer
            )

    def attention(self, kv_cache_dtype: str, context: int) -> Iterator[Measurement]:
        """Each number of sequences of `context` tokens that decode one token."""
        for rows in ATTENTION_ROWS:
            yield self._attention(kv_cache_dtype, context, rows)

    def _attention(self, kv_cache_dtype: str, context: int, rows: int) -> Measurement:
        """`rows` sequences, each with pages of its own."""
        pages = context // PAGE_SIZE * rows
        (layer,) = _attention_graph(1).attention_layers()
        size = pages * layer_page_bytes(layer, PAGE_SIZE, kv_cache_dtype)
        count = math.ceil(STEP_BYTES / size)
        graph = _attention_graph(count)
        ((entries, width),) = graph.parameters().values()
        table = _random_weight(Format.F32, entries, width, self._rng)
        executor = self._executor(graph, {"table.weight": table}, num_pages=pages, kv_cache_dtype=kv_cache_dtype)
        self._fill(executor)
        # Pages come in no order, as they do once sequences have come and gone.
        page_table = self._rng.permutation(pages).astype(np.int32).reshape(rows, -1)
        seconds = _best_seconds(
            executor,
            _batch(
                self._tokens(rows),
                positions=np.full(rows, context - 1, np.int32),
                slots=page_table[:, -1].astype(np.int64) * PAGE_SIZE + PAGE_SIZE - 1,
                query_starts=np.arange(rows + 1, dtype=np.int32),
                page_table=page_table,
            ),
        )
        operations = 4 * HEADS * HEAD_DIM * context * rows  # two products, of two operations each
        return Measurement(
            "attention",
            kv_cache_dtype,
            f"context {context}",
            rows,
            count,
            seconds,
            count * operations,
            count * size,
            integer=False,
        )

    def _executor(
        self, graph: Graph, tensors: dict[str, Tensor], *, num_pages: int = 1, kv_cache_dtype: str = "fp16"
    ) -> CpuExecutor:
        return CpuExecutor(
            graph,
            tensors,
            vocab_size=graph.output.width,
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            kv_cache_dtype=kv_cache_dtype,
            max_positions=max(CONTEXTS),
            threads=self._threads,
            isa=self._isa,
        )

    def _tokens(self, count: int) -> Int32:
        return self._rng.integers(0, ENTRIES, count, dtype=np.int32)

    def _rows(self, count: int) -> Batch:
        """Sequences of one token."""
        return _batch(
            self._tokens(count),
            positions=np.zeros(count, np.int32),
            slots=np.arange(count, dtype=np.int64) * PAGE_SIZE,
            query_starts=np.arange(count + 1, dtype=np.int32),
            page_table=np.arange(count, dtype=np.int32).reshape(count, 1),
        )

    def _fill(self, executor: CpuExecutor) -> None:
        """Write every slot: pages that were never written share one page of zeros, which stays in the cache."""
        for start in range(0, executor.num_pages * PAGE_SIZE, FILL_TOKENS):
            slots = np.arange(start, min(start + FILL_TOKENS, executor.num_pages * PAGE_SIZE), dtype=np.int64)
            # At position 0 a token sees one other alone, whatever its slot: to fill takes little attention.
            batch = _batch(
                self._tokens(len(slots)),
                positions=np.zeros(len(slots), np.int32),
                slots=slots,
                query_starts=np.array([0, len(slots)], np.int32),
                page_table=np.zeros((1, 1), np.int32),
            )
            executor.submit(batch).result()


def main() -> int:
    """Measure, print, and return the exit status."""
    arguments = _arguments()
    isa, threads = arguments.isa, arguments.threads
    seen = [ceilings(isa, threads)]
    bench = Bench(isa, threads, seen[0])
    works: list[Callable[[], Iterable[Measurement]]] = []
    if "linear" in arguments.kernels:
        works += [partial(bench.linears, kind, *shape) for kind in FORMATS for shape in arguments.shape]
    if "attention" in arguments.kernels:
        works += [partial(bench.attention, kv, context) for kv in KvType.__members__ for context in CONTEXTS]
    found: list[Measurement] = []
    try:
        with counting("measuring") as report:
            for done, work in enumerate(works):
                report(done, len(works))
                found += work()
                if done % CEILINGS_EVERY == 0:
                    seen.append(ceilings(isa, threads))
    except KeyboardInterrupt:
        return 130
    # What else the machine does lowers what is measured, never raises it.
    best = Ceilings(*map(max, zip(*map(astuple, seen), strict=True)))
    Console(highlight=False, width=None if sys.stdout.isatty() else REDIRECTED_WIDTH).print(
        _table(found, best, f"{isa}, {threads} threads")
    )
    if arguments.json is not None:
        results = {
            "isa": isa,
            "threads": threads,
            "platform": platform.platform(),
            "ceilings": asdict(best),
            "measurements": [measurement.as_json(best) for measurement in found],
        }
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


# --- graphs and batches -----------------------------------------------------------------------------------------------


def _linear_graph(count: int, out: int, in_: int) -> Graph:
    """Linears of one embedding, each added to the sum of those before it, as in a residual stream.

    Each takes its input through a slice of its own: linears of one and the same value would be merged into one. A
    slice costs nothing, and neither does the sum, which the linear adds while it writes. Attention, as little of it as
    can be, reads the sum: without, a step that asks for no logits would compute nothing. It reads sums of the result
    and not the result itself: what a linear gives to attention is computed from inputs of 16 bits, and what is measured
    are those of 8, however many linears there are.
    """
    g = GraphBuilder()
    x = g.embedding("table", ENTRIES, in_)
    y = g.linear(g.split(x, [in_])[0], "0", out)
    for index in range(1, count):
        y = g.add(g.linear(g.split(x, [in_])[0], str(index), out), y)
    pieces = g.split(y, [NARROW, NARROW, NARROW, out - 3 * NARROW])[:3]
    z = g.attention(*(g.add(piece, piece) for piece in pieces), layer=0, head_dim=NARROW)
    return g.finish(g.select_rows(z))


def _attention_graph(layers: int) -> Graph:
    """Queries, keys and values from a table; every layer's result is the next one's queries."""
    g = GraphBuilder()
    widths = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    y, keys, values = g.split(g.embedding("table", ENTRIES, sum(widths)), widths)
    for layer in range(layers):
        y = g.attention(y, keys, values, layer=layer, head_dim=HEAD_DIM)
    return g.finish(g.select_rows(y))


def _random_weight(form: Format, out: int, in_: int, rng: np.random.Generator) -> Tensor:
    """A weight [out, in]."""
    if form.is_quantised:
        blocks = rng.integers(0, 256, (out, in_ // BLOCK, form.block_bytes), dtype=np.uint8)
        # Both formats begin with the scale; Q4_1's minimum comes next. Bytes at random might be no number.
        halves = np.array([0.01, -0.07] if form is Format.Q4_1 else [0.01], np.float16).view(np.uint8)
        blocks[:, :, : len(halves)] = halves
        return Tensor("random", (out, in_), form, blocks.reshape(out, -1))
    values = rng.standard_normal((out, in_), np.float32)
    if form is Format.F16:
        return Tensor("random", values.shape, form, values.astype(np.float16))
    if form is Format.BF16:
        return Tensor("random", values.shape, form, (values.view(np.uint32) >> 16).astype(np.uint16))
    return Tensor("random", values.shape, form, values)


def _batch(tokens: Int32, *, positions: Int32, slots: Int64, query_starts: Int32, page_table: Int32) -> Batch:
    """A step without logits, so that sampling costs nothing: shapes as in `octavo.backends.protocol.Batch`."""
    sequences = len(query_starts) - 1
    return Batch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        query_starts=query_starts,
        context_lengths=positions[query_starts[1:] - 1] + np.int32(1),
        page_table=page_table,
        table_rows=np.arange(sequences, dtype=np.int32),
        copies=np.zeros((0, 2), np.int32),
        logits=LogitRows(
            rows=np.zeros(0, np.int32),
            targets=np.zeros(0, np.int32),
            positions=np.zeros(0, np.int64),
            seeds=np.zeros(0, np.uint64),
            temperature=np.zeros(0, np.float32),
            top_k=np.zeros(0, np.int32),
            top_p=np.zeros(0, np.float32),
            typical_p=np.zeros(0, np.float32),
            min_p=np.zeros(0, np.float32),
            num_logprobs=np.zeros(0, np.int32),
        ),
    )


def _best_seconds(executor: CpuExecutor, batch: Batch) -> float:
    """The least time of some steps. The first one, which takes memory for activations, does not count."""
    executor.submit(batch).result()
    best, tries = math.inf, 0
    end = time.perf_counter() + CELL_SECONDS
    while tries < MIN_TRIES or time.perf_counter() < end:
        start = time.perf_counter()
        executor.submit(batch).result()
        best = min(best, time.perf_counter() - start)
        tries += 1
    return best


# --- results ----------------------------------------------------------------------------------------------------------


def _table(found: Sequence[Measurement], best: Ceilings, machine: str) -> Table:
    """A line for every shape, a column for every number of rows."""
    grid = Table(
        title=f"{machine}. At best: {_short(best.bytes_per_second)} GB/s read, "
        f"GOP/s {_short(best.float_operations_per_second)} float, {_short(best.integer_operations_per_second)} integer",
        caption="GB/s of weights or KV; % of the ceiling that binds: m memory, a arithmetic",
        box=SIMPLE,
        pad_edge=False,
        show_edge=False,
    )
    grid.add_column("", no_wrap=True)
    counts = sorted({measurement.rows for measurement in found})
    for rows in counts:
        grid.add_column(f"{rows} row{'s' if rows > 1 else ''}\nGOP/s GB/s      ", justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
    for measurement in found:
        section = lines.setdefault((measurement.kernel, measurement.kind), {})
        section.setdefault(measurement.shape, {})[measurement.rows] = _cell(measurement, best)
    for (kernel, kind), shapes in lines.items():
        grid.add_section()
        grid.add_row(f"{kernel}, {kind}{' KV' if kernel == 'attention' else ''}", style="bold")
        for shape, cells in shapes.items():
            grid.add_row(f"  {shape}", *(cells.get(rows, "–") for rows in counts))
    return grid


def _cell(measurement: Measurement, best: Ceilings) -> str:
    memory, arithmetic = measurement.ideal_seconds(best)
    percent = 100 * max(memory, arithmetic) / measurement.seconds
    operations, read = measurement.operations / measurement.seconds, measurement.bytes / measurement.seconds
    return f"{_short(operations)} {_short(read):>4} {percent:3.0f}% {_bound(memory, arithmetic)[0]}"


def _bound(memory: float, arithmetic: float) -> str:
    return "memory" if memory >= arithmetic else "arithmetic"


def _short(per_second: float) -> str:
    """Billions per second in three digits."""
    billions = per_second / 1e9
    return f"{billions:.1f}" if billions < 99.95 else f"{billions:.0f}"


# --- command line -----------------------------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=["linear", "attention"], default=["linear", "attention"])
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="OUTxIN",
        help="of the linears; may be repeated (those of SmolLM2 135M)",
    )
    known = instruction_sets()
    parser.add_argument("--isa", choices=known, default=known[0], help="(%(default)s)")
    parser.add_argument("--threads", type=_positive, default=physical_cores(), help="one for each core (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every figure there")
    arguments = parser.parse_args()
    arguments.shape = arguments.shape or SHAPES
    return arguments


def _shape(text: str) -> tuple[int, int]:
    try:
        out, in_ = map(_positive, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not OUTxIN, such as 960x576") from None
    if in_ % BLOCK:
        raise argparse.ArgumentTypeError(f"{text!r}: IN must be a multiple of {BLOCK}, the block of quantised weights")
    return out, in_


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
