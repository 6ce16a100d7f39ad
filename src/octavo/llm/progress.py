"""Bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.llm.outputs import RequestOutput


def _nothing(_: RequestOutput) -> None:
    pass


@contextmanager
def counting_prompts(total: int, wanted: bool | None) -> Iterator[Callable[[RequestOutput], None]]:
    """How many prompts of a batch have ended, and how fast. Yields what to call with each.

    Args:
        wanted: None: if there are several prompts, and a terminal.
    """
    if wanted is False or (wanted is None and total < 2):
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if wanted is None and not console.is_terminal:
        yield _nothing
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bar:
        task = bar.add_task("prompts", total=total, speed="")
        tokens = 0

        def ended(output: RequestOutput) -> None:
            nonlocal tokens
            tokens += output.usage.completion_tokens
            elapsed = bar.tasks[0].elapsed
            speed = f"{tokens / elapsed:.0f} tokens/s" if elapsed else ""
            bar.update(task, advance=1, speed=speed)

        yield ended
