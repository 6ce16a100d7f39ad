"""A pickle that must never be loaded."""

from pathlib import Path
from typing import Any


class Sabotage:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))
