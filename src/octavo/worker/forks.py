"""What processes that code forks off must not keep open in the place of the one that they come from."""

import os
import weakref
from typing import Protocol


class Held(Protocol):
    """An open file or socket."""

    def fileno(self) -> int:
        """Its descriptor; negative, or a ValueError, when it is closed."""
        ...


_held: "weakref.WeakSet[Held]" = weakref.WeakSet()


def keep_from_forks(held: Held) -> None:
    """Have something end with this process, which others wait for: what is forked off lives on, and shares it else."""
    _held.add(held)


def _let_go() -> None:
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for each in _held:
            try:
                descriptor = each.fileno()
            except ValueError:
                continue
            if descriptor >= 0:
                os.dup2(nothing.fileno(), descriptor, inheritable=False)  # whoever closes it closes what is his


os.register_at_fork(after_in_child=_let_go)
