"""What a place that models come from must offer, and how it reports on the way."""

from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Called as a fetch goes on, a few times a second, perhaps from other threads. Must not raise."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """`stage` says what is being done, `done` and `total` are bytes; a total of None is unknown."""
        ...


class SourceError(Exception):
    """Why one source cannot deliver, in a few words. `octavo.weights.hub` gathers them into one message."""


class Source(Protocol):
    """One place that a model can be fetched from into the cache folder. `str(source)` names it in messages."""

    @property
    def key(self) -> str:
        """A file name that is this source's alone."""
        ...

    def cached(self, root: Path) -> Path | None:
        """The model (a folder or .gguf file) if it lies complete in the cache folder `root`, without any network."""
        ...

    def fetch(self, root: Path, progress: Progress) -> Path:
        """Fetch the model into the cache folder `root`. Interrupted, it leaves nothing that `cached` would take.

        Raises:
            SourceError: it cannot be had from here.
            OSError: the disk is full, or the folder cannot be written.
        """
        ...
