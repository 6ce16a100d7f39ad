"""From the timings of all rounds to a table and to JSON."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from rich.box import SIMPLE
from rich.table import Table

from process import Worker
from workloads import Timing, Work, Workload

OURS = "octavo"


@dataclass
class Results:
    """What was measured.

    Attributes:
        workers: the systems that ran to the end, by label. timings: of every system and work, one a round.
    """

    model: Path
    threads: int
    workloads: Sequence[Workload]
    workers: Mapping[str, Worker]
    timings: dict[tuple[str, Work], list[Timing]] = field(default_factory=dict)

    def speeds(self, label: str, workload: Workload) -> list[float]:
        """Tokens per second, one a round; empty where the figure does not exist."""
        figures = [workload.tokens_per_second(timing) for timing in self.timings[label, workload.work]]
        known = [figure for figure in figures if figure is not None]
        return known if len(known) == len(figures) else []

    def ratio(self, label: str, workload: Workload) -> float | None:
        """Octavo's speed over another system's: the median of the rounds' ratios."""
        if OURS not in self.workers:
            return None
        pairs = zip(self.speeds(OURS, workload), self.speeds(label, workload), strict=False)  # one may have none
        ratios = [ours / theirs for ours, theirs in pairs]
        return median(ratios) if ratios else None

    def best_peer(self, workload: Workload, labels: Sequence[str]) -> str | None:
        """The peer that Octavo is least ahead of."""
        ratios = {label: self.ratio(label, workload) for label in labels}
        known = {label: ratio for label, ratio in ratios.items() if ratio is not None}
        return min(known, key=known.__getitem__) if known else None

    def peers(self, *, same_file: bool) -> list[str]:
        """The other systems; with `same_file` those that load what Octavo loads."""
        others = [label for label in self.workers if label != OURS]
        return [label for label in others if not same_file or self.workers[label].candidate.model == self.model]


def table(results: Results) -> Table:
    """Medians with their ranges, and Octavo's ratio to the best peer on the same file and on any."""
    rounds = max((len(timings) for timings in results.timings.values()), default=0)
    grid = Table(
        title=f"{results.model.name}, {results.threads} threads, rounds: {rounds}",
        caption="tok/s, median and range: more is better. Load and memory: less is better.",
        box=SIMPLE,
        leading=1,
        pad_edge=False,
        show_edge=False,
    )
    grid.add_column("", no_wrap=True)
    for label in results.workers:
        grid.add_column(_stacked(label), justify="right", no_wrap=True)
    groups = {"octavo /\nbest peer": results.peers(same_file=True)}
    if len(results.peers(same_file=False)) > len(results.peers(same_file=True)):
        groups["best on\nany file"] = results.peers(same_file=False)
    for heading in groups:
        grid.add_column(heading, justify="right", no_wrap=True)
    for workload in results.workloads:
        cells = [_range(results.speeds(label, workload)) for label in results.workers]
        for labels in groups.values():
            best = results.best_peer(workload, labels)
            ratio = None if best is None else results.ratio(best, workload)
            cells.append("–" if best is None else f"{ratio:.2f}\n{_stacked(best)}")
        grid.add_row(_heading(workload), *cells)
    grid.add_section()
    for name, form, of in _COSTS:
        cells = [form.format(of(worker)) for worker in results.workers.values()]
        grid.add_row(name, *cells, *(_cost_ratio(results, labels, of) for labels in groups.values()))
    return grid


def as_json(results: Results) -> dict[str, object]:
    """Everything measured, every round of it."""
    labels = list(results.workers)
    return {
        "model": results.model.name,
        "model_bytes": results.model.stat().st_size,
        "threads": results.threads,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "platform": platform.platform()},
        "systems": {label: worker.describe() for label, worker in results.workers.items()},
        "workloads": {
            workload.name: {
                "work": asdict(workload.work),
                "tokens_per_second": {label: results.speeds(label, workload) for label in labels},
                "octavo_ratio": {label: results.ratio(label, workload) for label in labels if label != OURS},
            }
            for workload in results.workloads
        },
        "timings": [
            {"system": label, "work": asdict(work), "rounds": [asdict(timing) for timing in timings]}
            for (label, work), timings in results.timings.items()
        ],
    }


_COSTS: tuple[tuple[str, str, Callable[[Worker], float]], ...] = (
    ("load, s", "{:.1f}", lambda worker: worker.load_seconds),
    ("peak RSS, MB", "{:,.0f}", lambda worker: worker.peak_rss_bytes / 1e6),
)


def _cost_ratio(results: Results, labels: Sequence[str], of: Callable[[Worker], float]) -> str:
    if OURS not in results.workers or not labels:
        return "–"
    best = min(labels, key=lambda label: of(results.workers[label]))
    return f"{of(results.workers[OURS]) / of(results.workers[best]):.2f}\n{_stacked(best)}"


def _heading(workload: Workload) -> str:
    work = workload.work
    return f"{workload.name}\n{work.streams} × {work.prompt_len}/{work.output_len}"


def _stacked(label: str) -> str:
    """Narrow, so that the table fits a terminal of 80 columns."""
    return label.replace(" ", "\n")


def _range(speeds: Sequence[float]) -> str:
    if not speeds:
        return "–"
    middle = f"{median(speeds):,.0f}"
    return middle if len(speeds) == 1 else f"{middle}\n{min(speeds):,.0f} – {max(speeds):,.0f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
