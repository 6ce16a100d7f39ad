"""The systems that are compared: one module each, with a function `load(model, threads, works) -> System`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Info:
    """What a system says of itself once it is loaded.

    Attributes:
        version: of the package. vocab_size: token ids are below it.
        settings: what it runs with, beyond what all are given.
    """

    version: str
    vocab_size: int
    settings: dict[str, str] = field(default_factory=dict)


class System(Protocol):
    """A loaded model that generates greedily and knows no end of sequence."""

    @property
    def info(self) -> Info:
        """What it is."""
        ...

    def generate(self, prompts: list[list[int]], output_len: int) -> Iterator[list[int]]:
        """Generate `output_len` tokens after each prompt.

        Yields:
            After every step, the index of a prompt for each token that it produced.
        """
        ...
