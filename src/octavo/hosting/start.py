"""What a hosted model's process is started with."""

import msgspec

from octavo.hosting.config import HostingConfig


class HostingStart(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and its name.

    Attributes:
        number: of the process among those of the model, counted from 1.
        rate_limiter: where that listens; empty if there is none.
        numbers, earlier: as `octavo.hosting.info.HostedInfo` has them.
    """

    name: str
    config: HostingConfig
    number: int = 1
    rate_limiter: str = ""
    numbers: tuple[int, ...] = ()
    earlier: tuple[tuple[int, ...], ...] = ()

    @property
    def place(self) -> int:
        """Of the process among those of the model that there are, counted from 0."""
        return self.numbers.index(self.number) if self.numbers else self.number - 1
