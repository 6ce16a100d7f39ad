"""Bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from octavo.llm.outputs import RequestOutput


@contextmanager
def counting_weights(model: str, wanted: bool | None) -> Iterator[Callable[[int, int], None]]:
    """How many of a model's weights are loaded. Yields what to call with (loaded, in all).

    Args:
        wanted: None: on a terminal.
    """
    with _bar(wanted, transient=True) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def counting_prompts(total: int, wanted: bool | None) -> Iterator[Callable[[RequestOutput], None]]:
    """How many prompts of a batch have ended, and how fast. Yields what to call with each.

    Args:
        wanted: None: if there are several prompts, and a terminal.
    """
    wanted = False if wanted is None and total < 2 else wanted
    speed = TextColumn("{task.fields[tokens_per_second]:.0f} tokens/s")
    with _bar(wanted, MofNCompleteColumn(), TimeRemainingColumn(), speed) as bar:
        task, tokens = bar.add_task("prompts", total=total, tokens_per_second=0.0), 0

        def ended(output: RequestOutput) -> None:
            nonlocal tokens
            tokens += output.usage.completion_tokens
            elapsed = bar.tasks[0].elapsed
            bar.update(task, advance=1, tokens_per_second=tokens / elapsed if elapsed else 0.0)

        yield ended


def _bar(wanted: bool | None, *columns: ProgressColumn, transient: bool = False) -> Progress:
    console = Console(stderr=True)
    shown = console.is_terminal if wanted is None else wanted
    description = TextColumn("{task.description}", markup=False)
    return Progress(description, BarColumn(), *columns, console=console, transient=transient, disable=not shown)
