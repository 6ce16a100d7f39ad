"""What the command line shows on a terminal. Everything but results goes to standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from octavo.weights.hub import resolve

console = Console(stderr=True, highlight=False)
output = Console(highlight=False)


@contextmanager
def progress_bar(*columns: object) -> Iterator[Progress]:
    """A progress display that disappears when done, and shows nothing where there is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,  # type: ignore[arg-type]
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar


def fetch(name: str) -> Path:
    """Find the model on this machine, or fetch it while a bar shows how far that is."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                if not console.is_terminal:
                    console.print(stage)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        return resolve(name, progress=report)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over a known number of things; yields what to call with (done, total)."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
