"""From the figures of all rounds to a table and to JSON."""

import os
import platform
from dataclasses import dataclass, field
from statistics import median

from rich.box import SIMPLE
from rich.table import Table

OURS = "octavo"


@dataclass(frozen=True)
class Figure:
    """A figure: what it is called, and how it is written."""

    name: str
    form: str


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure of a workload."""

    title: str
    figure: Figure


@dataclass
class Results:
    """What was measured.

    Attributes:
        figures: of each row by system, one a round. other_load: the shares of the machine that other work took, one a
            measurement.
    """

    figures: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    other_load: list[float] = field(default_factory=list)

    def add(self, title: str, figure: Figure, system: str, value: float) -> None:
        """Note a figure of one round."""
        self.figures.setdefault(Row(title, figure), {}).setdefault(system, []).append(value)

    def of(self, title: str, figure: Figure, system: str) -> list[float]:
        """A figure of a system, one a round."""
        return self.figures.get(Row(title, figure), {}).get(system, [])

    def systems(self) -> list[str]:
        """Those that were measured, ours first."""
        found = dict.fromkeys(system for cells in self.figures.values() for system in cells)
        return sorted(found, key=lambda system: system != OURS)

    def ratio(self, row: Row, system: str) -> float | None:
        """Octavo's figure over another's: the median of the rounds' ratios."""
        cells = self.figures[row]
        ours = next((each for each in cells if each.startswith(OURS)), OURS)
        pairs = zip(cells.get(ours, []), cells.get(system, []), strict=False)
        ratios = [figure / theirs for figure, theirs in pairs if theirs]
        return median(ratios) if ratios and not system.startswith(OURS) else None

    def load(self) -> str:
        """The other work in a phrase."""
        if not self.other_load:
            return "nothing was measured"
        return f"other work: {median(self.other_load):.0%} of the machine, {max(self.other_load):.0%} at most"


def table(results: Results) -> Table:
    """Medians over rounds, and in brackets Octavo's figure over the peer's."""
    grid = Table(caption=f"Medians; in brackets Octavo's over this one's. {results.load()}", box=SIMPLE, pad_edge=False)
    systems = results.systems()
    for heading in ("", ""):
        grid.add_column(heading, no_wrap=True)
    for system in systems:
        grid.add_column(system, justify="right", no_wrap=True)
    title = None
    for row in results.figures:
        if row.title != title and title is not None:
            grid.add_section()
        cells = [_cell(results, row, system) for system in systems]
        grid.add_row("" if row.title == title else row.title, row.figure.name, *cells)
        title = row.title
    return grid


def as_json(results: Results) -> dict[str, object]:
    """Every figure of every round."""
    rows = [
        {
            "workload": row.title,
            "figure": row.figure.name,
            "rounds": cells,
            "octavo_ratio": {system: results.ratio(row, system) for system in cells if not system.startswith(OURS)},
        }
        for row, cells in results.figures.items()
    ]
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "other_load": results.other_load}
    return {"machine": machine, "rows": rows}


def _cell(results: Results, row: Row, system: str) -> str:
    values = results.figures[row].get(system)
    if not values:
        return ""
    written = row.figure.form.format(median(values))
    ratio = results.ratio(row, system)
    return written if ratio is None else f"{written} ({ratio:.2f})"
